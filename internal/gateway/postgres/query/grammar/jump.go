package grammar

import (
	"context"
	"errors"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// PostgreSQL raises errors by setjmp and longjmp, which WebAssembly does not
// have. The module imports them from its host as stack_checkpoint and
// stack_restore of WASIX (wasix_32v1): a checkpoint keeps the host's stack, and
// a copy of the C stack, which lies in the module's memory.

// A checkpoint is what one setjmp kept.
type checkpoint struct {
	snapshot experimental.Snapshot
	result   uint32 // where setjmp's result goes
	at       uint32 // the C stack's pointer
	stack    []byte
}

// jumps are the checkpoints of one instance.
type jumps struct{ made []checkpoint }

// checkpoints and their stacks are bounded: a parse makes two or three.
const (
	mostCheckpoints = 64
	mostStack       = 1 << 20
)

type jumpsKey struct{}

// withJumps gives the calls of one instance a place for checkpoints.
func withJumps(ctx context.Context) context.Context {
	return context.WithValue(experimental.WithSnapshotter(ctx), jumpsKey{}, new(jumps))
}

var errJump = errors.New("the module's stack is not as it should be")

func setjmp(ctx context.Context, mod api.Module, stack []uint64) {
	j, mem := ctx.Value(jumpsKey{}).(*jumps), mod.Memory()
	snapshot, result := uint32(stack[0]), uint32(stack[1])
	at, top := uint32(mod.ExportedGlobal("__stack_pointer").Get()), uint32(mod.ExportedGlobal("__heap_base").Get())
	if at > top || top-at > mostStack || len(j.made) == mostCheckpoints {
		panic(errJump)
	}
	view, ok := mem.Read(at, top-at)
	if !ok || !mem.WriteUint64Le(snapshot, uint64(len(j.made))) {
		panic(errJump)
	}
	c := checkpoint{snapshot: experimental.GetSnapshotter(ctx).Snapshot(), result: result, at: at, stack: append([]byte(nil), view...)}
	j.made = append(j.made, c)
	if !mem.WriteUint64Le(result, 0) {
		panic(errJump)
	}
	stack[0] = 0
}

func longjmp(ctx context.Context, mod api.Module, stack []uint64) {
	j, mem := ctx.Value(jumpsKey{}).(*jumps), mod.Memory()
	n, ok := mem.ReadUint64Le(uint32(stack[0]))
	if !ok || n >= uint64(len(j.made)) {
		panic(errJump)
	}
	c := j.made[n]
	pointer, ok := mod.ExportedGlobal("__stack_pointer").(api.MutableGlobal)
	if !ok || !mem.Write(c.at, c.stack) || !mem.WriteUint64Le(c.result, stack[1]) {
		panic(errJump)
	}
	pointer.Set(uint64(c.at))
	stack[0] = 0
	c.snapshot.Restore(stack[:1])
}

// exportJumps gives the module what it imports of WASIX. Threads and signals are
// imported too, and never used by a parser.
func exportJumps(ctx context.Context, r wazero.Runtime) error {
	const i32, i64 = api.ValueTypeI32, api.ValueTypeI64
	b := r.NewHostModuleBuilder("wasix_32v1")
	export := func(name string, f api.GoModuleFunc, result []api.ValueType, params ...api.ValueType) {
		b.NewFunctionBuilder().WithGoModuleFunction(f, params, result).Export(name)
	}
	never := func(context.Context, api.Module, []uint64) { panic(errJump) }
	one := []api.ValueType{i32}
	export("stack_checkpoint", setjmp, one, i32, i32)
	export("stack_restore", longjmp, nil, i32, i64)
	export("proc_id", func(_ context.Context, mod api.Module, stack []uint64) {
		if !mod.Memory().WriteUint32Le(uint32(stack[0]), 1) {
			panic(errJump)
		}
		stack[0] = 0
	}, one, i32)
	export("callback_signal", never, nil, i32, i32)
	export("thread_signal", never, one, i32, i32)
	export("thread_exit", never, nil, i32)
	export("futex_wait", never, one, i32, i32, i32, i32)
	export("futex_wake", never, one, i32, i32)
	export("futex_wake_all", never, one, i32, i32)
	_, err := b.Instantiate(ctx)
	return err
}

// Package grammar is PostgreSQL's own grammar: it makes the parse tree that the
// server would make of a text.
//
// The grammar is libpg_query, PostgreSQL's scanner and parser as a library,
// compiled to WebAssembly. A Grammar is that module, translated to machine code
// once. Each Parse gets an instance of its own, with memory of its own that is
// bounded: nothing that one text does to an instance, were it to exhaust its
// memory or its stack, is there for the next. A Tree is what
// the text means before any name in it is looked up.
//
// The module's bytes are those that the Go module github.com/wasilibs/go-pgquery
// has for itself. That module's own way to run them keeps instances after they
// failed, and translates the code anew for each, which is why it is not used.
package grammar

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	_ "unsafe" // of linkname

	pg_query "github.com/pganalyze/pg_query_go/v6"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	_ "github.com/wasilibs/go-pgquery/parser" // has the bytes of module
	"google.golang.org/protobuf/proto"
)

// module is the variable of that name of a package that others may not import.
// A test says that it is what it must be.
//
//go:linkname module github.com/wasilibs/go-pgquery/internal/wasm.LibPGQuery
var module []byte

// A Tree is what a text means: its statements, each with its place in the text
// in bytes.
type Tree = pg_query.ParseResult

// Version is the major version of PostgreSQL that the grammar is of.
const Version = 17

const (
	memory    = 256 << 20 // bytes that an instance may have
	instances = 2         // at once
)

// Longest is how many bytes a text may have. The time that a text takes is
// linear in it, about 3 µs for each token, so this bounds it too: code that can
// be interrupted would be seven times slower.
const Longest = 1 << 20

// A SyntaxError is what the server would say of a text that it cannot read.
type SyntaxError struct {
	Message string // "syntax error at or near \"form\""
	At      int    // the character, from 1; 0 if the error has no place
}

func (e *SyntaxError) Error() string { return e.Message }

// ErrExhausted is of a text that took more memory or stack than there is for
// one. It says nothing about whether the text is right.
var ErrExhausted = errors.New("too large or too deep to be read")

// A Grammar reads texts, for any number of callers at once. It is ready when
// Warm returned; a Parse before that waits.
type Grammar struct {
	turn chan struct{} // one for each instance that runs

	once    sync.Once
	runtime wazero.Runtime
	code    wazero.CompiledModule
	err     error
}

// New returns a Grammar that has not been translated yet.
func New() *Grammar {
	return &Grammar{turn: make(chan struct{}, instances)}
}

// Warm translates the grammar, which takes about two seconds and 250 MB for that
// time, unless it has been. The memory is the system's again when Warm returns.
// The second call waits for the first.
func (g *Grammar) Warm() error {
	g.once.Do(func() { g.err = g.translate() })
	return g.err
}

// Close frees what Warm made. No Parse may run or follow.
func (g *Grammar) Close() error {
	g.once.Do(func() { g.err = errors.New("the grammar is closed") })
	if g.runtime == nil {
		return nil
	}
	return g.runtime.Close(context.Background())
}

func (g *Grammar) translate() error {
	// Half of what translating takes is in use until its end, so the collector
	// would let a process that needs 30 MB otherwise grow to 280 MB before it
	// collects again, and give that back minutes later.
	defer debug.FreeOSMemory()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2|experimental.CoreFeaturesThreads))
	err := func() (err error) {
		if _, err = wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
			return err
		}
		if err = exportJumps(ctx, r); err != nil {
			return err
		}
		g.code, err = r.CompileModule(ctx, module)
		return err
	}()
	if err != nil {
		_ = r.Close(ctx)
		return fmt.Errorf("PostgreSQL's grammar: %w", err)
	}
	g.runtime = r
	return nil
}

// Parse reads a text. The text must be UTF-8 without NUL. The error is a
// *SyntaxError where the server would say so too, ErrExhausted, or that of ctx.
func (g *Grammar) Parse(ctx context.Context, text string) (*Tree, error) {
	if len(text) > Longest {
		return nil, ErrExhausted
	}
	if err := g.Warm(); err != nil {
		return nil, err
	}
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	b, err := g.run(text)
	if err != nil {
		return nil, err
	}
	tree := new(Tree)
	if err := proto.Unmarshal(b, tree); err != nil { // protobuf bounds its depth
		return nil, fmt.Errorf("%w: %v", ErrExhausted, err)
	}
	return tree, nil
}

// run gives the encoded tree of a text, from an instance of its own.
func (g *Grammar) run(text string) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil { // wazero says some of what an instance did so
			out, err = nil, fmt.Errorf("%w: %v", ErrExhausted, p)
		}
	}()
	ctx := withJumps(experimental.WithMemoryAllocator(context.Background(), experimental.MemoryAllocatorFunc(allocate)))
	mod, err := g.runtime.InstantiateModule(ctx, g.code, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize"))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrExhausted, err)
	}
	defer mod.Close(context.Background())
	return (&instance{ctx: ctx, mod: mod}).parse(text)
}

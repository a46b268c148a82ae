package environment

import (
	"context"
	"sync"

	"isle"
	"isle/internal/audit"
)

// locks gives each ref to one operation at a time. An operation that is
// preempted (by a teardown) or abandoned (its client has left, and another
// wants the ref) finds its context ended.
type locks struct {
	mu   sync.Mutex
	refs map[isle.Ref]*refLock
}

// A refLock is there while somebody holds or wants a ref.
type refLock struct {
	token      chan struct{} // holds one while held
	holder     *op
	users      int // who hold or wait
	patient    int // of users, those who wait and end nobody's work for it
	preempting int // teardowns that wait
}

// An op is one operation that holds a ref.
type op struct {
	locks     *locks
	lock      *refLock
	ref       isle.Ref
	ctx       context.Context
	cancel    context.CancelCauseFunc
	teardown  bool // which is finished: nobody preempts it
	abandoned bool // under locks.mu
}

// errPreempted ends the context of an operation that gave way.
var errPreempted = isle.Errorf(isle.Conflict, "interrupted by a newer request for the same environment")

// acquire waits for the ref until ctx ends. The operation's own context
// descends from parent, so that it may outlive the caller. With preempt, which is
// for teardowns, whoever holds the ref, or comes before, is told to end, unless it
// is one too.
func (k *locks) acquire(ctx, parent context.Context, ref isle.Ref, preempt bool) (*op, error) {
	k.mu.Lock()
	l := k.refs[ref]
	if l == nil {
		l = &refLock{token: make(chan struct{}, 1)}
		k.refs[ref] = l
	}
	l.users++
	if preempt {
		l.preempting++
	}
	if l.holder != nil && (preempt && !l.holder.teardown || l.holder.abandoned) {
		l.holder.cancel(errPreempted)
	}
	k.mu.Unlock()

	select {
	case l.token <- struct{}{}:
	case <-ctx.Done():
		k.mu.Lock()
		defer k.mu.Unlock()
		if preempt {
			l.preempting--
		}
		k.leave(ref, l)
		return nil, ctx.Err()
	}
	return k.hold(audit.Carry(parent, ctx), ref, l, preempt), nil
}

// join is acquire by who only looks: work that is going on is waited for, also
// where its client has left.
func (k *locks) join(ctx, parent context.Context, ref isle.Ref) (*op, error) {
	k.mu.Lock()
	l := k.refs[ref]
	if l == nil {
		l = &refLock{token: make(chan struct{}, 1)}
		k.refs[ref] = l
	}
	l.users++
	l.patient++
	k.mu.Unlock()
	var err error
	select {
	case l.token <- struct{}{}:
	case <-ctx.Done():
		err = ctx.Err()
	}
	k.mu.Lock()
	l.patient--
	if err != nil {
		k.leave(ref, l)
		k.mu.Unlock()
		return nil, err
	}
	k.mu.Unlock()
	return k.hold(audit.Carry(parent, ctx), ref, l, false), nil
}

// try is acquire without waiting; nil if the ref is held.
func (k *locks) try(parent context.Context, ref isle.Ref) *op {
	k.mu.Lock()
	if k.refs[ref] != nil {
		k.mu.Unlock()
		return nil
	}
	l := &refLock{token: make(chan struct{}, 1), users: 1}
	l.token <- struct{}{}
	k.refs[ref] = l
	k.mu.Unlock()
	return k.hold(parent, ref, l, false)
}

func (k *locks) hold(parent context.Context, ref isle.Ref, l *refLock, preempt bool) *op {
	o := &op{locks: k, lock: l, ref: ref, teardown: preempt}
	o.ctx, o.cancel = context.WithCancelCause(parent)
	k.mu.Lock()
	defer k.mu.Unlock()
	l.holder = o
	if preempt {
		l.preempting--
	} else if l.preempting > 0 {
		o.cancel(errPreempted)
	}
	return o
}

// leave drops a user; k.mu is held.
func (k *locks) leave(ref isle.Ref, l *refLock) {
	if l.users--; l.users == 0 {
		delete(k.refs, ref)
	}
}

// abandon says that nobody waits for the operation any more: it goes on until
// somebody else wants the ref.
func (o *op) abandon() {
	o.locks.mu.Lock()
	defer o.locks.mu.Unlock()
	o.abandoned = true
	if o.lock.holder == o && o.lock.users-o.lock.patient > 1 {
		o.cancel(errPreempted)
	}
}

// release gives the ref free.
func (o *op) release() {
	o.cancel(nil)
	o.locks.mu.Lock()
	defer o.locks.mu.Unlock()
	o.lock.holder = nil
	<-o.lock.token
	o.locks.leave(o.ref, o.lock)
}

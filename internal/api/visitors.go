package api

import (
	"context"
	"net"
	"strconv"
	"sync"

	"isle"
)

// maxVisitors bounds how many users of the machine are remembered.
const maxVisitors = 1024

// Visitors decides who may connect to published ports. They are on this machine's
// loopback, where every user's programs are, so a stage is open to those who have
// a role for it, and to everybody where the policy calls it public.
type Visitors struct {
	guard *guard
	// owner is the user whose program has the other end of a connection; false: of
	// this machine none has.
	owner func(client, server net.Addr) (uid uint32, ok bool, err error)

	mu    sync.Mutex
	known map[uint32]*changing
}

// NewVisitors returns Visitors that ask the policy of cfg.
func NewVisitors(cfg Config, owner func(client, server net.Addr) (uint32, bool, error)) *Visitors {
	return &Visitors{
		owner: owner, known: map[uint32]*changing{},
		guard: &guard{policy: cfg.Policy, log: cfg.Audit, slog: cfg.Log, refused: cfg.Refused},
	}
}

// Visit begins to ask about a connection, by its two addresses. who is the number of
// the user whose it is, "" where nobody's is. may refuses who may not connect to the
// ports of an environment. A program that has closed its end by then is nobody's any
// more, and refused.
func (v *Visitors) Visit(client, server net.Addr) (who func() string, may func(ctx context.Context, ref isle.Ref, project string) error) {
	type found struct {
		uid uint32
		ok  bool
	}
	owner := sync.OnceValues(func() (found, error) {
		uid, ok, err := v.owner(client, server)
		return found{uid, ok}, err
	})
	who = func() string {
		if f, err := owner(); err == nil && f.ok {
			return strconv.FormatUint(uint64(f.uid), 10)
		}
		return ""
	}
	return who, func(ctx context.Context, ref isle.Ref, project string) error {
		if v.guard.policy.State().Set.Public(ref.Stage) {
			return nil
		}
		f, err := owner()
		if err != nil {
			return isle.Errorf(isle.Unavailable, "who connects to environment %s cannot be found out: %w", ref, err)
		}
		if !f.ok {
			return isle.Errorf(isle.Refused, "environment %s is for those who have a role for its stage, and no user of this machine has the other end of the connection", ref)
		}
		who := v.caller(f.uid)
		resource := isle.Resource{Kind: "environment", Name: ref.Name, Stage: ref.Stage}
		_, err = v.guard.may(ctx, who, queriesOf(who, ask{isle.ActionEnvironmentVisit, resource, project}), "")
		return err
	}
}

// caller is a user of the machine. They need not speak to the server to have a
// role for a stage.
func (v *Visitors) caller(uid uint32) caller {
	v.mu.Lock()
	c := v.known[uid]
	if c == nil {
		if len(v.known) >= maxVisitors {
			clear(v.known)
		}
		c = &changing{look: func() caller {
			name := userName(uid)
			return caller{actor: isle.Actor{Kind: isle.Human, Name: name}, groups: GroupsOf(name), member: true}
		}}
		v.known[uid] = c
	}
	v.mu.Unlock()
	return c.now()
}

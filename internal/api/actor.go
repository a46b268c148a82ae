package api

import (
	"context"
	"net"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/identity"
)

type actorKey struct{}

// A caller is who is at the other end of a connection.
type caller struct {
	actor  isle.Actor
	groups []string // of the operating system
	member bool     // may speak to the server at all
	// subject is what their credential proved; nil for whom the kernel vouches for.
	subject *identity.Subject
}

// stage is the only one that the caller acts in; "" is any, one at a time.
func (c caller) stage() string {
	if c.subject == nil {
		return ""
	}
	return c.subject.Stage
}

// WithActor returns a context that carries who acts, and the groups of the
// operating system that they are in.
func WithActor(ctx context.Context, a isle.Actor, groups ...string) context.Context {
	return context.WithValue(ctx, actorKey{}, caller{actor: a, groups: groups, member: true})
}

// ActorFrom returns who acts; ok is false if nobody was proven.
func ActorFrom(ctx context.Context) (a isle.Actor, ok bool) {
	c, ok := callerFrom(ctx)
	return c.actor, ok
}

func callerFrom(ctx context.Context) (c caller, ok bool) {
	switch v := ctx.Value(actorKey{}).(type) {
	case caller:
		return v, true
	case *changing:
		return v.now(), true
	}
	return caller{}, false
}

// lookAgain is how long the groups of somebody are believed: who leaves one is
// outside it from then on, also on a connection that they keep.
const lookAgain = 500 * time.Millisecond

// changing is a caller who is in groups of the operating system.
type changing struct {
	look func() caller // by the files of the machine as they are now

	mu     sync.Mutex // guards what follows
	caller caller
	at     time.Time // when it was looked up
}

// now is who they are now.
func (v *changing) now() caller {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.at.IsZero() || time.Since(v.at) >= lookAgain {
		v.caller, v.at = v.look(), time.Now()
	}
	return v.caller
}

// vouched is who the kernel says is at the other end of a socket.
func vouched(uid, gid uint32, group string) caller {
	c := caller{actor: isle.Actor{Kind: isle.Human, Name: userName(uid)}}
	c.groups = GroupsOf(c.actor.Name)
	if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil && !slices.Contains(c.groups, g.Name) {
		c.groups = append(c.groups, g.Name)
	}
	c.member = uid == 0 || group != "" && slices.Contains(c.groups, group)
	return c
}

// regrouped returns a channel that is closed once the caller of a call is in
// other groups than who was, or ctx is done.
func regrouped(ctx context.Context, who caller) <-chan struct{} {
	v, ok := ctx.Value(actorKey{}).(*changing)
	if !ok {
		return nil
	}
	changed := make(chan struct{})
	go func() { // ends with ctx
		defer close(changed)
		t := time.NewTicker(lookAgain)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if c := v.now(); c.member != who.member || !slices.Equal(c.groups, who.groups) {
				return
			}
		}
	}()
	return changed
}

// ConnContext returns an http.Server.ConnContext: it asks the kernel who is at
// the other end of a unix socket (SO_PEERCRED, unix(7)) and puts that actor into
// the context of every call on the connection. Root and members of the group
// may speak to the server. What the kernel does not vouch for has no actor, and
// is refused by the guard.
func ConnContext(group string) func(ctx context.Context, conn net.Conn) context.Context {
	return func(ctx context.Context, conn net.Conn) context.Context {
		uc, ok := conn.(*net.UnixConn)
		if !ok {
			return ctx
		}
		raw, err := uc.SyscallConn()
		if err != nil {
			return ctx
		}
		var cred *unix.Ucred
		var credErr error
		if err := raw.Control(func(fd uintptr) {
			cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		}); err != nil || credErr != nil {
			return ctx
		}
		return context.WithValue(ctx, actorKey{}, &changing{look: func() caller { return vouched(cred.Uid, cred.Gid, group) }})
	}
}

// GroupsOf are the groups of a user by the machine's files (passwd(5),
// group(5)); none of a user who is unknown.
func GroupsOf(name string) (groups []string) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil {
			groups = append(groups, g.Name)
		}
	}
	return groups
}

// userName is the operating system's name of a uid, "root" for 0 whatever the
// system calls it, and "uid:N" where it has none.
func userName(uid uint32) string {
	if uid == 0 {
		return Root
	}
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil && u.Username != Root {
		return u.Username
	}
	return "uid:" + id
}

// Root is the name of whoever is uid 0.
const Root = "root"

// Group is the operating system's group whose members may speak to the server.
const Group = "isle"

// OnlyMembers is what everybody else is told.
const OnlyMembers = "only root and members of the group " + Group + " may speak to this server"

const becomeMember = "run the command as root, for example with sudo, or have root add you with `usermod -aG " + Group + " NAME` and log in again"

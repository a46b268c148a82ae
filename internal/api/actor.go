package api

import (
	"context"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"isle"
)

type actorKey struct{}

// WithActor returns a context that carries who acts.
func WithActor(ctx context.Context, a isle.Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorFrom returns who acts; ok is false if nobody was proven.
func ActorFrom(ctx context.Context) (a isle.Actor, ok bool) {
	a, ok = ctx.Value(actorKey{}).(isle.Actor)
	return a, ok
}

// ConnContext is an http.Server.ConnContext: it asks the kernel who is at the
// other end of a unix socket (SO_PEERCRED, unix(7)) and puts that actor into
// the context of every call on the connection. What the kernel does not vouch
// for has no actor, and is refused by the guard.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
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
	return WithActor(ctx, isle.Actor{Kind: isle.Human, Name: userName(cred.Uid)})
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

// Root is the name of the only actor that may do anything until there are
// roles.
const Root = "root"

// RootOnly is an Authorize that allows root everything and everybody else
// nothing. It holds until there are roles.
func RootOnly(_ context.Context, a isle.Actor, _ isle.Action, _ isle.Resource) (isle.Decision, string, error) {
	if a.Kind == isle.Human && a.Name == Root {
		return isle.Allow, "root may do everything", nil
	}
	return isle.Deny, OnlyRoot, nil
}

// OnlyRoot is what everybody who is not root is told.
const OnlyRoot = "only root may speak to this server until there are roles"

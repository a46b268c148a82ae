package api

import (
	"context"
	"slices"
	"time"

	"isle"
	"isle/internal/identity"
	"isle/internal/policy"
)

// Credentials prove callers from elsewhere.
type Credentials interface {
	// Authenticate says whom a credential proves that came from a source, an
	// address without its port. It fails with Refused where it proves nobody,
	// which it has recorded then; nothing of the credential is in the error.
	Authenticate(ctx context.Context, credential, source string) (identity.Subject, error)
	// Check is nil as long as the subject's credential counts. It takes no lock
	// and does no I/O.
	Check(s identity.Subject) error
	// Over is closed at the next change of any credential: who takes it before
	// Check misses none.
	Over() <-chan struct{}
}

// withSubject returns a context that carries whom a credential has proven. A
// person counts as long as they might speak to the server by its socket too: as
// root, or as a member of the group.
func withSubject(ctx context.Context, s identity.Subject, group string) context.Context {
	who := func(groups []string) caller {
		member := s.Actor.Kind == isle.Machine || s.Actor.Kind == isle.Human && Member(s.Actor.Name, groups, group)
		return caller{actor: s.Actor, groups: groups, member: member, subject: &s}
	}
	if s.Actor.Kind != isle.Human {
		return context.WithValue(ctx, actorKey{}, who(s.Groups))
	}
	look := func() caller { return who(GroupsOf(s.Actor.Name)) }
	return context.WithValue(ctx, actorKey{}, &changing{look: look, caller: who(s.Groups), at: time.Now()})
}

// Member reports whether a person in groups of the operating system may speak to
// a server at all, whose group is group.
func Member(person string, groups []string, group string) bool {
	return person == Root || group != "" && slices.Contains(groups, group)
}

// sourceKey is that of the address that a call came from.
type sourceKey struct{}

func withSource(ctx context.Context, source string) context.Context {
	return context.WithValue(ctx, sourceKey{}, source)
}

// sourceFrom is the address, without its port, that a call came from elsewhere; ""
// of one by the socket.
func sourceFrom(ctx context.Context) string {
	source, _ := ctx.Value(sourceKey{}).(string)
	return source
}

// ended is the rule that a credential does not count any more.
const ended = identity.CredentialRule

// counts says whether the caller's credential still does.
func (g *guard) counts(who caller) error {
	switch {
	case who.subject == nil: // the kernel vouches for the connection
		return nil
	case g.credentials == nil:
		return isle.Errorf(isle.Refused, "this server takes no credentials")
	case !who.subject.Expires.IsZero() && !g.policy.Now().Before(who.subject.Expires):
		return isle.Errorf(isle.Refused, "the credential has expired")
	}
	return g.credentials.Check(*who.subject)
}

// changes is closed once a credential has changed; nil where none can.
func (g *guard) changes() <-chan struct{} {
	if g.credentials == nil {
		return nil
	}
	return g.credentials.Over()
}

// stands says whether the caller's credential counts and the policy allows all
// of the queries, by which answers. doing says what is cut short if not, "" if
// nothing.
func (g *guard) stands(ctx context.Context, who caller, queries []policy.Query, doing string) ([]policy.Answer, error) {
	if len(queries) == 0 && !who.member {
		queries = queriesOf(who, atServer)
	}
	if err := g.counts(who); err != nil {
		return nil, g.ends(ctx, who, queries, doing, err)
	}
	return g.may(ctx, who, queries, doing)
}

// atServer stands for a call that asks for nothing in particular.
var atServer = ask{isle.ActionServerRead, isle.Resource{Kind: "server", Name: "server"}, ""}

// ends refuses what somebody does whose credential does not count any more.
func (g *guard) ends(ctx context.Context, who caller, queries []policy.Query, doing string, why error) error {
	if len(queries) == 0 {
		queries = queriesOf(who, atServer)
	}
	reason, next := Flatten(why).Message, "log in again with `isle login`"
	if doing != "" {
		doing = "ended: " + reason
	} else {
		next = reason + "; " + next
	}
	return g.refuse(ctx, queries[0], policy.Answer{Decision: isle.Deny, Rule: ended, Final: true, Message: next}, doing)
}

// watch asks again whenever the policy, a credential or the caller's groups
// change, and whenever a grant or the caller's credential ends, until ctx does,
// and cancels a call that is allowed no longer.
func (g *guard) watch(ctx context.Context, who caller, queries []policy.Query, cancel context.CancelCauseFunc) {
	for {
		// Before the question: what ends meanwhile is seen.
		state, asked, changes := g.policy.State(), g.policy.Now(), g.changes()
		if _, err := g.stands(ctx, who, queries, "ended by a change of policy"); err != nil {
			cancel(revoked{err})
			return
		}
		waiting, done := context.WithCancel(ctx)
		more := g.policy.Await(ctx, state, asked, g.shaken(waiting, who, changes))
		done()
		if !more {
			return
		}
		who, _ = callerFrom(ctx)
		queries = slices.Clone(queries)
		for i := range queries {
			queries[i].Groups = who.groups
		}
	}
}

// lookAtClock is how long the end of a credential may go unnoticed where the
// clock jumps to it: timers do not jump with it.
const lookAtClock = 500 * time.Millisecond

// shaken is closed once a caller may be no longer who they were: they are in
// other groups, a credential has changed, or theirs has ended. ctx ends that.
func (g *guard) shaken(ctx context.Context, who caller, changes <-chan struct{}) <-chan struct{} {
	groups := regrouped(ctx, who) // nil: of a machine
	switch {
	case who.subject == nil:
		return groups
	case groups == nil && who.subject.Expires.IsZero():
		return changes
	}
	shaken := make(chan struct{})
	go func() { // ends with ctx
		defer close(shaken)
		for {
			wait := lookAtClock
			if ends := who.subject.Expires; !ends.IsZero() {
				wait = min(wait, ends.Sub(g.policy.Now()))
			}
			if wait <= 0 {
				return
			}
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-changes:
			case <-groups:
			case <-t.C:
				continue
			}
			t.Stop()
			return
		}
	}()
	return shaken
}

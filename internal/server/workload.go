package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"isle"
	"isle/internal/allowance"
	"isle/internal/api"
	"isle/internal/audit"
)

// serveWorkload serves the Workload API of a launch on a connection, as long as
// the launch is to run: from the moment that an environment is to be down it
// has no identity any more, though it may take its time to end.
func (r *rooms) serveWorkload(instance, launch isle.ID, conn net.Conn) {
	caller := api.WorkloadCaller{Instance: instance}
	if e, service, ok := r.manager.ByLaunch(instance, launch); ok {
		caller.Ref, caller.ID = e.Ref, r.issuer.ID(e.Ref, e.Project, service)
		ctx, cancel := context.WithCancel(context.Background())
		var watch sync.WaitGroup
		watch.Go(func() {
			r.manager.Over(ctx, instance, launch)
			conn.Close()
		})
		defer watch.Wait()
		defer cancel()
	}
	r.workloads.Serve(conn, caller)
}

// issuing records that a document of a workload's identity is about to be given.
func (r *rooms) issuing(ctx context.Context, c api.WorkloadCaller, kind string, audience []string) error {
	r.manager.Received(c.Instance, "an identity ("+kind+")")
	return r.issues.add(ctx, string(c.Instance)+" "+c.ID.String(), kind, audience, func(summary string) audit.Entry {
		return r.ofWorkload(c, isle.Allow, summary)
	})
}

// refusedIdentity records that a workload asked for another's identity.
func (r *rooms) refusedIdentity(c api.WorkloadCaller, kind, asked string) {
	e := r.ofWorkload(c, isle.Deny, kind).With("asked", asked)
	e.Rule = "workload-identity"
	r.refusals.add(e, c.Ref)
}

// ofWorkload is an entry about a workload and the documents of its identity.
func (r *rooms) ofWorkload(c api.WorkloadCaller, decision isle.Decision, summary string) audit.Entry {
	e := audit.NewEvent(isle.Actor{Kind: isle.Workload, Name: c.ID.String()}, isle.ActionSVIDIssue,
		isle.Resource{Kind: "service", Name: c.ID.Name + "/" + c.ID.Service, Stage: c.ID.Stage}, decision, summary).In(c.Ref, c.Instance)
	e.Sessions = r.manager.Inside(c.Instance, time.Now())
	return e
}

// What one launch of a workload may put into the audit log by asking for its
// documents. An entry covers the same of the next minute, for as long as the same
// people are inside; beyond the burst one entry a minute
// covers all, so that none can fill the log, and nothing is given that no
// earlier entry speaks of.
const (
	issueCovers = time.Minute
	issueBurst  = 20
	issueEvery  = 15 * time.Second // one more of its own
	// maxIssuers is how many workloads are remembered before those that are
	// quiet are forgotten.
	maxIssuers = 2000
)

var ownIssues = allowance.Rate{Burst: issueBurst, Every: issueEvery}

// issues records what documents workloads get.
type issues struct {
	log appender
	now func() time.Time

	mu sync.Mutex // guards what follows
	of map[string]*issuer
}

// An issuer is what was recorded of one workload.
type issuer struct {
	used time.Time // under issues.mu

	recording sync.Mutex          // held over an entry, so that one covers who waits for it; guards what follows
	own       allowance.Allowance // entries of its own
	covered   map[string]covered  // by what is given; "*" is everything
	sessions  []isle.ID           // that were open at the last entry
}

// A covered is how long an entry covers, and what it covered so far.
type covered struct {
	until time.Time
	count int
}

func newIssues(log appender) *issues {
	return &issues{log: log, now: time.Now, of: map[string]*issuer{}}
}

// add returns once a durable entry speaks of the document: one made now, or one
// of the last minute. who is the launch and the identity; entry makes one.
func (i *issues) add(ctx context.Context, who, kind string, audience []string, entry func(summary string) audit.Entry) error {
	one := i.issuer(who)
	one.recording.Lock()
	defer one.recording.Unlock()
	now := i.now()
	audience = slices.Sorted(slices.Values(audience))
	what := fmt.Sprintf("%s %q", kind, audience)
	e := entry(kind)
	if !slices.Equal(e.Sessions, one.sessions) {
		// Somebody has come or gone: no entry of before says who may have asked now.
		// There are as many of these as there are sessions, which are entries too.
		one.sessions = e.Sessions
		for key, c := range one.covered {
			one.covered[key] = covered{count: c.count}
		}
	}
	for _, key := range []string{what, "*"} {
		if c, ok := one.covered[key]; ok && now.Before(c.until) && c.until.Sub(now) <= issueCovers {
			c.count++
			one.covered[key] = c
			return nil
		}
	}
	if one.own.Take(now, ownIssues) {
		if len(audience) > 0 {
			e = e.With("audience", strings.Join(audience, " "))
		}
	} else {
		what = "*"
		e = entry("documents of its identity: more kinds and audiences in the next minute than are told one by one")
	}
	if c := one.covered[what]; c.count > 0 {
		e = e.With("more_before", fmt.Sprint(c.count))
	}
	if err := i.log.Append(ctx, e); err != nil {
		return err
	}
	for key, c := range one.covered {
		if !now.Before(c.until) {
			delete(one.covered, key)
		}
	}
	one.covered[what] = covered{until: now.Add(issueCovers)}
	return nil
}

// issuer returns what was recorded of a workload.
func (i *issues) issuer(who string) *issuer {
	now := i.now()
	i.mu.Lock()
	defer i.mu.Unlock()
	one := i.of[who]
	if one == nil {
		if len(i.of) >= maxIssuers {
			for id, o := range i.of {
				if now.Sub(o.used) > time.Hour {
					delete(i.of, id)
				}
			}
		}
		one = &issuer{covered: map[string]covered{}}
		i.of[who] = one
	}
	one.used = now
	return one
}

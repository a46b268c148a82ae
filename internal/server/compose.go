package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/airlock"
	"isle/internal/api"
	"isle/internal/approval"
	"isle/internal/audit"
	"isle/internal/authority"
	"isle/internal/build"
	"isle/internal/build/debian"
	"isle/internal/driver/local"
	"isle/internal/driver/local/checkpoint"
	"isle/internal/environment"
	"isle/internal/gateway"
	httpdoor "isle/internal/gateway/http"
	"isle/internal/gateway/postgres"
	"isle/internal/identity"
	"isle/internal/image"
	"isle/internal/image/registry"
	"isle/internal/initproto"
	"isle/internal/release"
	"isle/internal/secret"
	"isle/internal/session"
	"isle/internal/snapshot"
	"isle/internal/store/sqlite"
)

// rooms are what the server is made of.
type rooms struct {
	server   *Server
	book     *logbook
	store    *sqlite.Store // the logbook's
	refusals *refusals
	policy   *authority.Authority
	key      *secret.Keyring
	secrets  *secret.Secrets
	// What waits for people.
	approvals *approval.Approvals
	notifier  *approval.Notifier
	callback  http.Handler // where webhooks bring decisions back to
	machines  *identity.Registry
	issuer    *identity.Issuer
	images    *image.Store
	builds    checkpoint.Builds // of isle-init
	builder   *build.Builder
	driver    *local.Driver
	sessions  *session.Sessions
	snapshots *snapshot.Snapshots
	releases  *release.Releases
	sampler   *release.Sampler
	gateway   *gateway.Gateway
	postgres  *postgres.Protocol // of the gateway
	tries     *api.Tries         // of credentials, at every listener
	inspector *httpdoor.Inspector
	airlocks  *airlock.Airlocks
	home      *initproto.Home
	manager   *environment.Manager
	handler   http.Handler
	issues    *issues
	// workloads serves the Workload API of every service.
	workloads *api.WorkloadAPI
	// Of callers from elsewhere; nil: nobody from there is known.
	credentials api.Credentials
	endpoints   http.Handler // where they get them

	stopFollow context.CancelFunc
	following  sync.WaitGroup
}

// compose constructs every room and wires it. What was opened before an error
// is closed again.
func compose(s *Server) (r *rooms, err error) {
	cfg := s.cfg
	at := func(name string) string { return filepath.Join(cfg.State, name) }
	r = &rooms{server: s, tries: api.NewTries()}
	defer func() {
		if err != nil {
			if cerr := r.close(false); cerr != nil {
				err = errors.Join(err, cerr)
			} // alone it keeps its hint
		}
	}()
	book, err := openLogbook(cfg)
	if err != nil {
		return r, err
	}
	r.book = book
	r.store = r.book.store
	r.refusals = newRefusals(r.store, s.log, func(ctx context.Context, ref isle.Ref) error {
		return r.manager.Down(ctx, isle.Actor{Kind: isle.System, Name: "log"}, ref, false, func(environment.Progress) {})
	})
	r.policy, err = authority.Open(context.Background(), authority.Config{
		Store: r.store, Now: cfg.Now, Since: r.book.latest(), Log: s.log, Reset: cfg.DefaultPolicy, Reaches: r.reaches(cfg.Group),
	})
	if err != nil {
		return r, err
	}
	identities := func(context.Context) error { return r.openIdentities() }
	// Each stands on those before it.
	for _, open := range []func(context.Context) error{r.openSecrets, r.openIssuer, r.openSessions, identities, r.openTokens, r.openApprovals} {
		if err = open(context.Background()); err != nil {
			return r, err
		}
	}
	if r.images, err = image.Open(at("images")); err != nil {
		return r, err
	}
	if r.driver, err = local.New(local.Config{State: cfg.State, Runtime: cfg.Runtime, Runsc: cfg.Runsc, CgroupParent: cfg.Cgroup, Log: s.log, Fault: cfg.fault()}); err != nil {
		return r, err
	}
	archive, err := debian.New(debian.Config{Dir: at("debian"), Blobs: r.images, Log: s.log})
	if err != nil {
		return r, err
	}
	if r.builder, err = build.New(build.Config{Images: r.images, Archive: archive, Sandbox: r.driver, Cache: at("build"), Dial: r.dialForBuilds, Registry: &registry.Client{Images: r.images, Log: s.log}}); err != nil {
		return r, err
	}
	r.home = initproto.NewHome(initproto.HomeConfig{Log: s.log, Refused: r.impostor, Workload: r.serveWorkload})
	r.openGateway()
	r.airlocks, err = airlock.New(airlock.Config{
		Dir: at("airlocks"), Home: r.home.Serve, Egress: r.gateway, Connect: r.connect, Inspect: r.inspect, Refused: r.refused,
		Inherited: adoptFiles(), Log: s.log, Fault: cfg.fault(),
	})
	if err != nil {
		return r, err
	}
	names, err := s.chooseNames()
	if err != nil {
		return r, err
	}
	if err = r.openSnapshots(context.Background()); err != nil {
		return r, err
	}
	if err = r.openReleases(context.Background()); err != nil {
		return r, err
	}
	r.manager = environment.New(environment.Config{
		Store: r.store, Ports: r.store, Driver: r.driver, Network: r.airlocks, Volumes: r.driver.Volumes(), Lines: r.home,
		Images: r.images, Snapshots: r.snapshots, Warm: r.snapshots, Sealed: r.sealed, Policy: r, Trust: r.inspector.Trust, Waiting: r.gateway.Waiting,
		Visits: api.NewVisitors(api.Config{Policy: r.policy, Audit: r.store, Log: s.log, Refused: r.refusals.actor}, airlock.Owner),
		Init:   cfg.Init, Logs: at("logs"), Forks: at("forks"), HTTP: names, Log: s.log,
		Spares: cfg.Spares, Drain: cfg.Drain, KeepAside: cfg.KeepBefore,
		Fault: cfg.fault(),
		Listen: func(key, network, address string) (net.Listener, error) {
			return s.handover.Listen(key, func() (net.Listener, error) { return net.Listen(network, address) })
		},
	})
	r.openSampler()
	r.handler = api.New(api.Config{
		Environments: r.manager, Builder: r.builder, Images: r.builder, Blobs: r.images, Audit: r.store, Signer: r.book.signer, Host: r, Policy: r.policy,
		Credentials: r.credentials, TrustDomain: r.issuer.TrustDomain, Secrets: r.secrets, Identities: r.machines,
		Recordings: r.sessions, Approvals: r.approvals, Gateway: r.gateway, Snapshots: r.snapshots, Releases: r.releases, Capture: r.manager.Snapshot,
		Drifting: r.sampler.Of,
		Refused:  r.refusals.actor,
		Mirror:   cfg.Mirror, Log: s.log,
	})
	return r, nil
}

// fault is the point at which a test wants the server to die, as a function
// for the rooms to call; nil in production.
func (c Config) fault() func(string) {
	if c.Fault == "" {
		return nil
	}
	if file, ok := strings.CutPrefix(c.Fault, "+"); ok {
		return func(point string) { tracePoint(file, point) }
	}
	file, armed := strings.CutPrefix(c.Fault, "@")
	return func(point string) {
		at := c.Fault
		if armed {
			b, _ := os.ReadFile(file)
			at = strings.TrimSpace(string(b))
		}
		if point == at {
			if armed {
				os.Remove(file) // it happened; the next server lives
			}
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // it comes at once
		}
	}
}

// tracePoint adds a line to a file: Unix nanoseconds and the name of a point. A
// line that cannot be written is one figure less.
func tracePoint(file, point string) {
	now := time.Now().UnixNano()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	fmt.Fprintf(f, "%d %s\n", now, point)
	f.Close()
}

// reconcile makes what is what should be.
func (r *rooms) reconcile(ctx context.Context) error {
	// Before anything runs again: no session begins until those are closed in
	// which the server died.
	if err := r.sessions.Recover(ctx); err != nil {
		return err
	}
	if err := r.manager.Reconcile(ctx); err != nil {
		return err
	}
	if err := r.approvals.Publish(ctx); err != nil && r.approvals.Err() == nil {
		r.server.log.Error("access that was granted for a time could not be put in force", "err", err)
	}
	follow, cancel := context.WithCancel(context.Background())
	r.stopFollow = cancel
	r.following.Go(func() { r.followPolicy(follow) }) // ends with close
	r.following.Go(func() { r.machines.Run(follow) }) // so does this
	r.following.Go(func() { r.issuer.Run(follow) })   // and this
	r.following.Go(func() { r.approvals.Run(follow) })
	watcher := release.NewWatcher(release.WatcherConfig{Releases: r.releases, Environments: r.manager, Hold: r.images.Hold, Now: r.server.cfg.Now, Slog: r.server.log})
	r.following.Go(func() { watcher.Run(follow) })
	r.following.Go(func() { r.sampler.Run(follow) })
	return nil
}

// drain lets connections to published ports end, for a moment.
func (r *rooms) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), graceful)
	defer cancel()
	r.manager.Drain(ctx)
}

// export returns the airlocks' sockets for a successor.
func (r *rooms) export() (map[string]*os.File, error) { return r.airlocks.Export() }

// close closes the rooms, those that use others first, and gives the state
// folder free. Environments run on.
func (r *rooms) close(successor bool) error {
	var errs []error
	if r.stopFollow != nil {
		r.stopFollow()
		r.following.Wait()
	}
	if r.manager != nil {
		errs = append(errs, r.manager.Close())
	}
	if r.gateway != nil { // clients are told before their airlock closes
		r.gateway.Close()
	}
	if r.airlocks != nil {
		r.airlocks.Stop()
	}
	if r.notifier != nil {
		r.notifier.Close()
	}
	if r.sessions != nil { // every one has ended
		errs = append(errs, r.sessions.Close())
	}
	if r.home != nil {
		errs = append(errs, r.home.Close())
	}
	if r.workloads != nil { // their connections are closed; what they were doing ends
		errs = append(errs, r.workloads.Close())
	}
	if r.refusals != nil { // the airlocks told of their last ones as they stopped
		r.refusals.close()
	}
	if r.driver != nil {
		errs = append(errs, r.driver.Close())
	}
	if r.book != nil {
		errs = append(errs, r.book.close())
	}
	if !successor {
		errs = append(errs, r.server.lock.Close())
	}
	return errors.Join(errs...)
}

// refused records what an environment tried to reach and may not.
func (r *rooms) refused(f airlock.Refusal) {
	r.record(f.Instance, f.Destination, f.Protocol, f.Reason, f.Count, f.First)
}

// impostor records what called home without being an isle-init.
func (r *rooms) impostor(f initproto.Refusal) {
	if entry, _, ok := r.refusal(f.Instance, "home", "", f.Reason, f.Count, f.At); ok {
		// Never counted together with a flood of others, which could hide it:
		// the line home tells of them ever more seldom by itself.
		r.refusals.append(entry)
	}
}

func (r *rooms) record(instance isle.ID, destination, protocol, reason string, count int, first time.Time) {
	if entry, ref, ok := r.refusal(instance, destination, protocol, reason, count, first); ok {
		r.refusals.add(entry, ref)
	}
}

// refusal is the entry of something that an instance was refused.
func (r *rooms) refusal(instance isle.ID, destination, protocol, reason string, count int, first time.Time) (entry audit.Entry, ref isle.Ref, ok bool) {
	if r.manager == nil {
		return entry, ref, false // it is not composed yet; nothing runs
	}
	actor := isle.Actor{Kind: isle.Workload, Name: string(instance)}
	e, known := r.manager.ByInstance(instance)
	if known {
		actor.Name = e.Ref.Name + "@" + e.Ref.Stage
	}
	entry = audit.NewEvent(actor, isle.ActionEgressConnect, isle.Resource{Kind: "egress", Name: destination}, isle.Deny, protocol)
	entry.Rule, entry.Count, entry.Instance = reason, count, instance
	if known {
		entry = entry.In(e.Ref, instance)
		entry.Sessions = r.manager.Inside(instance, first)
	}
	return entry, e.Ref, true
}

// Info implements api.Host.
func (r *rooms) Info() api.Info {
	s := r.server
	return api.Info{Version: s.cfg.Version, State: s.cfg.State, PID: os.Getpid(), Started: s.started, Remote: s.remote.Load().info(), Gateway: s.entrance.Load().address()}
}

// Doctor implements api.Host.
func (r *rooms) Doctor(context.Context) []api.Check {
	return append(Doctor(r.server.cfg),
		r.book.check(),
		r.checkSecrets(),
		r.checkSessions(),
		r.checkSnapshots(),
		r.checkReleases(),
		r.checkDrift(),
		r.checkIssuer(),
		r.checkApprovals(),
		r.checkPrepared(),
		r.server.remote.Load().check(),
		r.server.entrance.Load().check(),
	)
}

// Stop implements api.Host.
func (r *rooms) Stop() { r.server.Stop() }

const (
	// keepBuilds is how long what a project was last built of is kept, though
	// no environment runs it.
	keepBuilds = 30 * 24 * time.Hour
	// settled is how old a volume without a record must be to be nobody's.
	settled = time.Hour
)

// Collect implements api.Host: it frees layers and blobs that neither an
// environment nor a project's last build names, and volumes without a record.
func (r *rooms) Collect(ctx context.Context, dryRun bool) (api.Collected, error) {
	warm, err := r.collectWarm(ctx, dryRun)
	if err != nil {
		return api.Collected{}, err
	}
	stale := r.releases.Stale(r.policy.State().Set.Keeps)
	removed := len(stale)
	if !dryRun {
		actor, _ := api.ActorFrom(ctx)
		if removed, err = r.releases.Collect(ctx, actor, stale); err != nil {
			return api.Collected{}, err
		}
		stale = nil // those that something names by now stay
	}
	images, volumes := r.manager.InUse(ctx)
	used := map[isle.Digest]bool{}
	for _, m := range images {
		for _, l := range m.Layers {
			used[l.Digest] = true
		}
	}
	r.releases.Images(stale, func(m image.Image) {
		for _, l := range m.Layers {
			used[l.Digest] = true
		}
	})
	layers, blobs := r.builder.Keep(time.Now().Add(-keepBuilds))
	c, err := r.images.Collect(func(d isle.Digest) bool { return used[d] || layers(d) }, blobs, dryRun)
	if err != nil {
		return api.Collected{}, err
	}
	out := api.Collected{Layers: c.Layers, Blobs: c.Blobs, Freed: c.Bytes + warm.Bytes, Warm: warm.Count, Releases: removed}
	if !dryRun {
		r.builder.Prune()
	}
	known := map[isle.ID]bool{}
	for _, id := range volumes {
		known[id] = true
	}
	files := r.driver.Volumes()
	ids, err := files.List(ctx)
	if err != nil {
		return out, err
	}
	for _, id := range ids {
		if known[id] || time.Since(id.Time()) < settled {
			continue
		}
		if size, err := files.Used(id); err == nil {
			out.Freed += size
		}
		out.Volumes++
		if !dryRun {
			if err := files.Delete(ctx, id); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// A request is a Source as it was understood.
type request struct {
	file   spec.File
	lock   *spec.Lock // nil if there is none
	copies []build.Copied
	// credentials are for registries, and for this call alone.
	credentials build.Credentials
	secrets     buildSecrets // of build steps, for this call alone
}

// readSource parses and bounds what a client sent.
func readSource(s *islev1.Source) (request, error) {
	var r request
	name := s.GetSpecName()
	if name == "" {
		name = "isle.yaml"
	}
	switch {
	case len(s.GetSpec()) == 0:
		return r, isle.Errorf(isle.Invalid, "the request has no environment file").WithHint("send isle.yaml as source.spec, in base64 over JSON")
	case len(s.GetSpec()) > spec.MaxFileSize:
		return r, isle.Errorf(isle.Invalid, "%s has %d bytes, at most %d are read", name, len(s.GetSpec()), spec.MaxFileSize)
	case len(s.GetTrees()) > maxTrees:
		return r, isle.Errorf(isle.Invalid, "%s copies %d trees, at most %d", name, len(s.GetTrees()), maxTrees)
	}
	var err error
	if r.file, err = spec.Parse(name, s.GetSpec()); err != nil {
		return r, err
	}
	if len(s.GetLock()) > 0 {
		lockName := name[:len(name)-len(path.Ext(name))] + ".lock"
		if r.lock, err = spec.ParseLock(lockName, s.GetLock()); err != nil {
			return r, err
		}
	}
	if r.credentials, err = readCredentials(s.GetCredentials()); err != nil {
		return r, err
	}
	if r.secrets, err = readBuildSecrets(s.GetSecrets()); err != nil {
		return r, err
	}
	for _, t := range s.GetTrees() {
		c := build.Copied{Service: t.GetService(), From: t.GetFrom(), To: t.GetTo(), Tree: isle.Digest(t.GetDigest())}
		if !c.Tree.Valid() {
			return r, isle.Errorf(isle.Invalid, "copy %s of service %s: %q is no digest", c.From, c.Service, t.GetDigest())
		}
		r.copies = append(r.copies, c)
	}
	return r, nil
}

// maxCredentials is how many registries one call may have credentials for.
const maxCredentials = 64

// readCredentials are the credentials that a client sent, by registry.
func readCredentials(list []*islev1.RegistryCredential) (build.Credentials, error) {
	if len(list) > maxCredentials {
		return nil, isle.Errorf(isle.Invalid, "%d credentials for registries; at most %d are possible", len(list), maxCredentials)
	}
	out := build.Credentials{}
	for _, c := range list {
		out[c.GetRegistry()] = registry.Credential{Username: c.GetUsername(), Password: c.GetPassword(), IdentityToken: c.GetIdentityToken()}
	}
	return out, nil
}

// wantsLogin is the registry that an error is about which wants a credential; ""
// where it is another error, or the caller has sent one already.
func wantsLogin(err error, have build.Credentials) *islev1.Need {
	login, ok := errors.AsType[*registry.LoginNeeded](err)
	if !ok || have[login.Registry] != (registry.Credential{}) {
		return nil
	}
	return &islev1.Need{Registries: []string{login.Registry}}
}

// mayPull asks whether the caller may pull an image, and records that it is. One of
// this server's own is not pulled but read.
func (cfg Config) mayPull(ctx context.Context) func(registry.Reference) error {
	return func(ref registry.Reference) error {
		if ref.Local() {
			return cfg.allowed(ctx, askImage(isle.ActionImageRead, ref.Name()))
		}
		a := askImage(isle.ActionImagePull, ref.Name())
		if err := cfg.allowed(ctx, a); err != nil {
			return err
		}
		return cfg.Audit.Append(ctx, audit.NewEvent(actorOf(ctx), a.action, a.resource, isle.Allow, ref.String()))
	}
}

// A teller passes progress on to a stream, one event at a time. Byte counts
// are thinned out to ten a second for each step; an audit intent is made
// durable before the first step that does work, so that a request with nothing
// to do writes nothing.
//
// Whoever works on an environment is not kept waiting: it holds what others want,
// and a client can have it that nothing can be sent to it (a window of 0, RFC 9113,
// section 6.9). One that is too far behind has its work cut short. A build waits.
type teller struct {
	cfg    Config
	ctx    context.Context // of the call
	cancel context.CancelCauseFunc
	send   func(*islev1.ProgressEvent) error
	intent audit.Entry
	queue  chan *islev1.ProgressEvent // to the goroutine that sends
	finish func()                     // closes it, once

	mu    sync.Mutex
	begun bool // the intent is written
	last  map[string]time.Time
	over  bool // queue is closed

	failed atomic.Bool // nobody reads any more
}

// tellAhead is how many events a client may be behind.
const tellAhead = 4096

// newTeller returns a teller and the context to work under: it ends when the
// stream breaks or the intent cannot be recorded, and with done, which has to be
// called before anything else is sent, and before the call returns.
func (cfg Config) newTeller(ctx context.Context, action isle.Action, r isle.Resource, send func(*islev1.ProgressEvent) error) (*teller, context.Context) {
	work, cancel := context.WithCancelCause(ctx)
	t := &teller{
		cfg: cfg, ctx: ctx, cancel: cancel, send: send, intent: audit.NewIntent(actorOf(ctx), action, r, ""), last: map[string]time.Time{},
		queue: make(chan *islev1.ProgressEvent, tellAhead),
	}
	sent := make(chan struct{})
	go func() { // ends with done
		defer close(sent)
		for e := range t.queue {
			if !t.failed.Load() {
				if err := t.send(e); err != nil {
					t.fail(err)
				}
			}
		}
	}()
	t.finish = sync.OnceFunc(func() {
		t.mu.Lock()
		t.over = true
		close(t.queue)
		t.mu.Unlock()
		<-sent
	})
	return t, work
}

// done returns when all that was told is sent; nothing is told any more. The work
// is over, and may hold nothing: this takes as long as the client likes.
func (t *teller) done() {
	t.finish()
	t.cancel(nil)
}

// fail gives the work up: nobody reads of it.
func (t *teller) fail(err error) {
	t.failed.Store(true)
	t.cancel(err)
}

// build is a build.Progress.
func (t *teller) build(e build.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.State == "start" && !t.begun {
		// Up builds too, and who may launch what is built may not be who may build.
		if err := t.cfg.allowed(t.ctx, ask{t.intent.Action, t.intent.Resource, t.intent.Resource.Name}); err != nil {
			t.cancel(err)
			return
		}
		t.begun = true
		if err := t.cfg.Audit.Append(t.ctx, t.intent); err != nil {
			t.begun = false
			t.cancel(err)
			return
		}
	}
	t.tell(&islev1.ProgressEvent{Service: e.Service, Step: e.Step, State: e.State, Message: e.Message, Done: e.Done, Total: e.Total}, e.State != "progress") // what a pull tells keeps who pulls the same waiting
}

// event passes an event on that is no build's.
func (t *teller) event(e *islev1.ProgressEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell(e, false)
}

// tell has an event sent, and waits until it can be if that is said; t.mu is held.
func (t *teller) tell(e *islev1.ProgressEvent, wait bool) {
	if t.failed.Load() || t.over {
		return
	}
	if e.State == "progress" {
		key, now := e.Service+"\x00"+e.Step, time.Now()
		if now.Sub(t.last[key]) < 100*time.Millisecond && e.Done != e.Total {
			return
		}
		t.last[key] = now
	}
	if wait {
		select {
		case t.queue <- e:
		case <-t.ctx.Done():
		}
		return
	}
	select {
	case t.queue <- e:
	default:
		if e.State != "progress" { // of those the next one says more
			t.fail(isle.Errorf(isle.Unavailable, "the client does not read what it is told: it is %d events behind", tellAhead))
		}
	}
}

// end records how the work ended, if any was done, and gives err its cause.
func (t *teller) end(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && t.ctx.Err() == nil {
		err = context.Cause(ctx)
	}
	defer t.done()
	t.mu.Lock()
	begun := t.begun
	t.mu.Unlock()
	if begun {
		if aerr := t.cfg.Audit.Append(context.WithoutCancel(t.ctx), t.intent.Outcome(err)); aerr != nil {
			t.cfg.Log.Error("an outcome could not be recorded; recovery will close it as unknown", "action", t.intent.Action, "err", aerr)
		}
	}
	return err
}

// built is a locked and built request, or what is needed to make it.
type built struct {
	need    []isle.Digest
	lock    *spec.Lock
	changed []byte // the lock to write; nil if it is as it was sent
	result  build.Result
}

// prepareOptions are what Up and Build say about locking and building.
type prepareOptions struct {
	lock   build.LockOptions
	build  build.Options
	verify bool
	keep   func(*islev1.ProgressEvent) // tells of the lock of a build that failed; nil: nobody is told
}

// prepare locks and builds. It returns early, with need, where the client has
// files to send first.
func (cfg Config) prepare(ctx context.Context, r request, o prepareOptions, p build.Progress) (built, error) {
	if o.lock.Mirror == "" {
		o.lock.Mirror = cfg.Mirror
	}
	o.build.Mirror = o.lock.Mirror
	o.lock.Credentials, o.lock.Pull = r.credentials, cfg.mayPull(ctx)
	o.build.Credentials, o.build.Pull = o.lock.Credentials, o.lock.Pull
	o.build.Reach, o.build.Secret = cfg.mayReach(ctx, r.file.Name), cfg.secretsOf(r)
	defer r.secrets.forget()
	// Trees are asked for before anything else: to lock may take long, and is
	// done again by the call that follows.
	var trees []isle.Digest
	for _, c := range r.copies {
		trees = append(trees, c.Tree)
	}
	need := append(cfg.Blobs.Missing(trees), cfg.Builder.LockNeeds(r.file, r.copies)...)
	if len(need) > 0 {
		return built{need: need}, nil
	}
	lock, changes, err := cfg.Builder.Lock(ctx, r.file, r.lock, r.copies, o.lock, p)
	if err != nil {
		return built{}, err
	}
	b := built{lock: lock}
	if r.lock == nil || len(changes) > 0 {
		b.changed = lock.Encode()
	}
	if b.need = cfg.Builder.Needs(lock); len(b.need) > 0 {
		return b, nil
	}
	o.build.Frozen = o.lock.Locked
	if b.result, err = cfg.Builder.Build(ctx, r.file, lock, o.build, p); err != nil {
		return b, cfg.keepRecorded(ctx, r.file.Name, b.result, err, o.keep)
	}
	if err := cfg.recordNetwork(ctx, r.file.Name, b.result.Recorded); err != nil {
		return b, err
	}
	if b.lock = b.result.Lock; !bytes.Equal(b.lock.Encode(), lock.Encode()) {
		b.changed = b.lock.Encode()
	}
	if o.verify {
		_, err = cfg.Builder.Verify(ctx, r.file, b.lock, o.build, p)
	}
	return b, err
}

// keepRecorded records what steps were answered that ended well in a build that
// failed, and tells of the lock that has it. It returns why the build failed.
func (cfg Config) keepRecorded(ctx context.Context, project string, res build.Result, failed error, tell func(*islev1.ProgressEvent)) error {
	if err := cfg.recordNetwork(context.WithoutCancel(ctx), project, res.Recorded); err != nil {
		cfg.Log.Error("what build steps were answered could not be recorded", "project", project, "err", err)
		return failed
	}
	if res.Lock != nil && tell != nil {
		tell(&islev1.ProgressEvent{State: "log", Message: "isle.lock keeps what the steps that ended well were answered", Lock: res.Lock.Encode()})
	}
	return failed
}

// mayReach asks whether the caller may have a project's build steps reach the
// internet, and records each host before anything is sent to it: what a step
// sends to whom is up to its author.
func (cfg Config) mayReach(ctx context.Context, project string) func(host string, port int) error {
	var mu sync.Mutex
	asked := map[string]error{}
	a := ask{isle.ActionImageRecord, isle.Resource{Kind: "image", Name: project}, ""}
	return func(host string, port int) error {
		mu.Lock()
		defer mu.Unlock()
		to := net.JoinHostPort(host, strconv.Itoa(port))
		if err, known := asked[to]; known {
			return err
		}
		if len(asked) >= maxReached {
			return isle.Errorf(isle.Exhausted, "a build reaches at most %d hosts", maxReached)
		}
		err := cfg.allowed(ctx, a)
		if err == nil {
			err = cfg.Audit.Append(ctx, audit.NewEvent(actorOf(ctx), a.action, a.resource, isle.Allow, clipped(to)))
		}
		asked[to] = err
		return err
	}
}

// maxReached is how many hosts the steps of one build may reach: each is an entry
// of the log.
const maxReached = 256

// recordNetwork writes down what build steps were answered by others, one entry a
// step: how much, and the digest of all of it as the lock has it.
func (cfg Config) recordNetwork(ctx context.Context, project string, steps []build.Recording) error {
	var entries []audit.Entry
	for _, s := range steps {
		summary := fmt.Sprintf("recorded network of %s, %s: %d answers, %d of them new, %s", s.Service, clipped(s.Step), s.Count, s.New, s.Answers)
		entries = append(entries, audit.NewEvent(actorOf(ctx), isle.ActionImageBuild, isle.Resource{Kind: "image", Name: project}, isle.Allow, summary))
	}
	if len(entries) == 0 {
		return nil
	}
	return cfg.Audit.Append(ctx, entries...)
}

// strings of digests, for the wire.
func digestStrings(ds []isle.Digest) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = string(d)
	}
	return out
}

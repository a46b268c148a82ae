package environment

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"isle"
	"isle/internal/snapshot"
	"isle/internal/spec"
)

// A memory is what copies go on from, instead of being started: that of all
// services of what they are made of, in files. It is there until every copy has
// gone on or come to nothing.
type memory struct {
	dir      string
	runtime  isle.Digest
	services []asleep

	mu    sync.Mutex
	users int    // copies that are to go on from it, and who makes them
	drop  func() // called when the last of them is done
}

// An asleep is a service as it was at the instant of a capture.
type asleep struct {
	name string
	// launch is the one whose isle-init is in memory; "" for a service that did
	// not run.
	launch     isle.ID
	secretHash isle.Digest
	phase      Phase // that its copy has
	exit       *int
	message    string
}

// use counts one who needs the memory.
func (y *memory) use() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.users++
}

// leave says that one of them does not any more. Of no memory it does nothing.
func (y *memory) leave() {
	if y == nil {
		return
	}
	y.mu.Lock()
	y.users--
	last := y.users == 0
	y.mu.Unlock()
	if last && y.drop != nil {
		y.drop()
	}
}

// memoryFor decides whether copies of an origin go on from memory, and sees to it
// that there is some: o.memory. Where they are started instead although the class
// has memory and nobody asked for that, it says why, for people.
func (m *Manager) memoryFor(o *origin, stage string, cold bool) (why string, err error) {
	driver, ok := m.cfg.Driver.(Restorer)
	if !ok || o.rec.Spec.Isolation != spec.Gvisor || cold {
		return "", nil
	}
	if stage != "" && stage != o.rec.Ref.Stage {
		return "memory does not leave its stage", nil
	}
	if o.live == nil {
		if o.asleep == nil {
			return o.cold, nil
		}
		if err := driver.CanRestore(o.asleep.runtime); err != nil {
			return "", err
		}
		o.memory = o.asleep
		return "", nil
	}
	if why := m.restless(o); why != "" {
		return why, nil
	}
	// Nothing is stopped for what could not be brought back.
	runtime, err := driver.RuntimeOf(o.rec.Instance)
	if err == nil {
		err = driver.CanRestore(runtime)
	}
	if err != nil {
		return "", err
	}
	dir := filepath.Join(m.cfg.Forks, string(isle.NewID()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", isle.Errorf(isle.Unavailable, "memory cannot be kept: %w", err)
	}
	o.memory = &memory{dir: dir, users: 1, drop: func() {
		if err := os.RemoveAll(dir); err != nil {
			m.cfg.Log.Error("memory that nothing needs any more could not be removed; the next start tries again", "folder", dir, "error", err)
		}
	}}
	return "", nil
}

// restless says why what runs has no memory that could be gone on from, of an
// origin whose volumes are chosen.
func (m *Manager) restless(o *origin) (why string) {
	runs := false
	for _, s := range o.rec.Services {
		if s.Phase == Exited || s.Phase == Broken || s.Phase == Pending {
			continue
		}
		runs = true
		svc, _ := o.rec.specOf(s.Name)
		for _, want := range svc.Volumes { // those that are copied, which were ready when it was held
			if _, ok := findVolume(o.volumes, s.Name, want.Path); !ok {
				return "setup of service " + s.Name + " has not ended"
			}
		}
	}
	if !runs {
		return "none of its services runs"
	}
	return ""
}

// recall fills in what a capture has found.
func (y *memory) recall(rec Environment, c Captured) {
	y.runtime = c.Runtime
	for _, s := range rec.Services {
		a := asleep{name: s.Name, phase: s.Phase, exit: s.ExitCode, message: s.Message}
		for _, in := range c.Launches {
			if in == s.Launch {
				a.launch, a.secretHash, a.exit = s.Launch, s.SecretHash, nil
			}
		}
		if a.launch == "" {
			svc, _ := rec.specOf(s.Name)
			a.settle(svc.Restart)
		}
		y.services = append(y.services, a)
	}
}

// settle says what becomes of a service that is not in memory: it is as ended as
// it was, or is started where it was about to be.
func (a *asleep) settle(restart string) {
	switch {
	case a.phase == Exited, a.phase == Broken, a.phase == Pending && a.message != "":
	case a.phase == Running && restart != "always" && restart != "on-failure", a.phase == Unhealthy && restart != "always" && restart != "on-failure":
		code := 137
		a.phase, a.exit, a.message = Broken, &code, "it ended when it was captured"
	default:
		a.phase, a.exit, a.message = Pending, nil, ""
	}
}

// of is what memory says of a service.
func (y *memory) of(service string) asleep {
	for _, a := range y.services {
		if a.name == service {
			return a
		}
	}
	return asleep{name: service, phase: Pending}
}

// fall makes the record of a copy what it is before it goes on.
func (y *memory) fall(e *Environment) {
	for i := range e.Services {
		s := &e.Services[i]
		a := y.of(s.Name)
		s.Phase, s.ExitCode, s.Message = a.phase, a.exit, a.message
		if a.launch != "" {
			s.Phase = Starting
		}
	}
}

// goesOnFrom gives a copy its memory, if any, which it has until leaveMemory.
func (f *fork) goesOnFrom(y *memory, next Opening) {
	f.next = next
	if y != nil {
		y.use()
		f.memory, f.leaveMemory = y, sync.OnceFunc(y.leave)
	}
}

// made says in the record of a copy that its volumes are made: it is next as
// soon as it is up, and has to wake first where there is memory.
func (y *memory) made(next Opening) func(*Environment) {
	return func(e *Environment) {
		if e.Opening = next; y != nil {
			e.Opening = Waking
			y.fall(e)
		}
	}
}

// memoryOf is that of a snapshot; nil and why, for people, where it has none that
// may be gone on from. drop is called when nothing needs it any more.
func memoryOf(s snapshot.Snapshot, drop func()) (y *memory, why string) {
	x := s.Manifest.Memory
	switch {
	case x == nil:
		return nil, "the snapshot has no memory"
	case s.Memory == "" && s.NoMemory:
		return nil, "the snapshot's memory was left out when it was imported"
	case s.Memory == "":
		return nil, "nobody who is trusted signed the snapshot's memory"
	}
	y = &memory{dir: s.Memory, runtime: x.Runtime, users: 1, drop: drop}
	for _, svc := range s.Manifest.Services {
		a := asleep{name: svc.Name, phase: Phase(svc.Phase), exit: svc.ExitCode}
		switch {
		case svc.SecretHash != "":
			a.launch, a.secretHash = svc.Launch, svc.SecretHash
		case a.exit != nil:
			a.message = describeExit(*a.exit, "")
		case a.phase == Broken:
			a.message = "it had failed when it was captured"
		}
		y.services = append(y.services, a)
	}
	return y, ""
}

// note says in the manifest of a snapshot what is in memory.
func (y *memory) note(x *snapshot.Manifest) {
	for i := range x.Services {
		s := &x.Services[i]
		a := y.of(s.Name)
		s.SecretHash, s.Phase, s.ExitCode = a.secretHash, string(a.phase), a.exit
		if a.launch != "" {
			s.Launch = a.launch
		}
	}
	x.Memory = &snapshot.Memory{Runtime: y.runtime}
}

// captureWith is capture with memory, where the origin is to have some.
func (m *Manager) captureWith(ctx context.Context, o *origin, into []Volume) (Captured, error) {
	if o.memory == nil {
		return m.capture(ctx, o, into, "")
	}
	// Who is in memory has to be known: nothing starts meanwhile.
	o.live.launching.Lock()
	defer o.live.launching.Unlock()
	rec := o.live.snapshot()
	captured, err := m.capture(ctx, o, into, o.memory.dir)
	if err == nil {
		o.memory.recall(rec, captured)
	}
	return captured, err
}

// Package environment is the lifecycle of environments.
//
// An Environment has a desired state (running or down) and an observed one;
// reconcile makes the second follow the first, after a request and after a
// crash alike. It has an instance ID that is never used again, beside its Ref
// (NAME@STAGE), which may be. Its services share one airlock; each launch of a
// service has a launch ID and a one-launch secret that only its isle-init can
// read. Volumes outlive launches. A Driver makes sandboxes out of images; an
// Airlock is the only network they have; a Line is how isle-init is spoken to.
//
// A fork is an environment whose volumes were copied from another's, or from a
// snapshot's, at one instant. It is somebody else: it has a name, an instance
// and an identity of its own, and a generation, by which what runs inside sees
// that it is a copy. It is shut until on_fork has succeeded in every service. Where
// the class has memory (gvisor), a copy goes on from the source's: its services
// are not started but wake from a Capture, and their isle-inits are told who they
// are from then on. A warm start is an environment that begins as a copy of the
// ready state of exactly its release, which an earlier one left in a snapshot.
//
// What was released is switched and not replaced: another instance of it starts
// beside the one that serves, and takes its published ports once it is healthy.
// The one before answers what it was asked, and is put aside: frozen, so that it
// can go on as it was, until its time is over.
//
// A Manager does the work. The room declares what it needs (Store, Ports,
// Driver, Network, Volumes, Lines, Images) and the server wires it.
package environment

import (
	"time"

	"isle"
	"isle/internal/image"
	"isle/internal/spec"
)

// Desired is what an environment should be.
type Desired string

// The desired states.
const (
	WantRunning Desired = "running"
	WantDown    Desired = "down"
)

// Phase is what an environment or service is seen to be.
type Phase string

// The phases.
const (
	Pending   Phase = "pending"   // recorded, nothing made yet
	Starting  Phase = "starting"  // being made, or not healthy yet
	Running   Phase = "running"   // every service is up, and healthy where it has a check
	Unhealthy Phase = "unhealthy" // up, but a check fails
	Exited    Phase = "exited"    // a service ended with code 0 and is not to be restarted
	Broken    Phase = "failed"    // could not be started, or ended with an error and is not to be restarted
	Stopping  Phase = "stopping"  // being torn down
	Gone      Phase = "down"      // nothing of it runs
)

// An Environment is the record of one instance.
type Environment struct {
	Instance isle.ID    `json:"instance"`
	Ref      isle.Ref   `json:"ref"`
	Project  string     `json:"project"`
	Owner    isle.Actor `json:"owner"`
	Desired  Desired    `json:"desired"`
	Phase    Phase      `json:"phase"`
	Spec     spec.File  `json:"spec"`
	Created  time.Time  `json:"created"`
	Expires  time.Time  `json:"expires,omitzero"` // zero: never
	UIDBase  uint32     `json:"uid_base"`         // first of 65,536 host uids of its own
	Services []Service  `json:"services"`         // in start order
	// What git knew of the files that it was last brought up from. The client
	// says so, and who may do what is not decided by it.
	Branch     string `json:"branch,omitempty"`     // checked out in the work tree, where there is one
	Commit     string `json:"commit,omitempty"`     // in hexadecimal; "" where there is none
	Dirty      bool   `json:"dirty,omitempty"`      // the files are not known to be the commit's
	Repository string `json:"repository,omitempty"` // names the repository on its machine, without its path
	// Release is what it was last brought up from, where that was a release.
	Release isle.Digest `json:"release,omitempty"`
	Keep    bool        `json:"keep,omitempty"` // of `isle run --keep`
	OneShot bool        `json:"one_shot,omitempty"`
	// Of what was copied from another environment, or from a snapshot.
	Parent    isle.ID     `json:"parent,omitempty"` // the instance that it was copied from
	ParentRef isle.Ref    `json:"parent_ref,omitzero"`
	Origin    isle.Digest `json:"origin,omitempty"`    // the snapshot that it was copied from
	Ancestors []Ancestor  `json:"ancestors,omitempty"` // before Parent, the nearest first
	// Generation is when it was copied, in Unix nanoseconds, and another one for
	// every copy that this server makes: it only grows. 0: it is no copy.
	Generation int64   `json:"generation,omitempty"`
	Fork       bool    `json:"fork,omitempty"`    // it was copied under a name of its own
	Warm       bool    `json:"warm,omitempty"`    // it began with a ready state, in place of a start
	Crossed    bool    `json:"crossed,omitempty"` // from another stage
	Opening    Opening `json:"opening,omitempty"`
	// Staged says that it is to take the place of whoever has its Ref, who serves
	// until then. Nobody finds it by name.
	Staged bool `json:"staged,omitempty"`
	// Aside says that another instance has taken its place: it is Staged, and
	// frozen, until that time. nil: it serves.
	Aside *Aside `json:"aside,omitempty"`
	// Yielding says that its services are ended so that another instance can have
	// its volumes; what a crash leaves is started again.
	Yielding bool    `json:"yielding,omitempty"`
	Saved    []Saved `json:"saved,omitempty"`   // its volumes as releases before had left them, the oldest first
	Trouble  string  `json:"trouble,omitempty"` // why it is not open, for people
	// Kept says, for people, what became of keeping its ready state; "" where it
	// was not to be.
	Kept string `json:"kept,omitempty"`
	// Boot is the boot ID of the machine that it was last started under:
	// after another boot everything desired is started again.
	Boot string `json:"boot,omitempty"`
}

// An Aside is why and how long an instance is kept that serves no more.
type Aside struct {
	For   isle.ID   `json:"for"` // the instance that took its place
	Since time.Time `json:"since"`
	Until time.Time `json:"until"` // when it is removed
}

// An Opening is how far a fork is from being open. While it is not, its airlock
// lets nothing through in either direction but the line to its isle-init.
type Opening string

// The openings.
const (
	Open    Opening = ""        // it is as any other environment
	Copying Opening = "copying" // its volumes are being made; what a crash leaves is undone
	Waking  Opening = "waking"  // its services go on from memory; what a crash leaves is undone
	Shut    Opening = "shut"    // on_fork has not succeeded in every service
)

// An Ancestor is what something was copied from, which may be gone.
type Ancestor struct {
	Instance isle.ID     `json:"instance"`
	Ref      isle.Ref    `json:"ref"`
	Origin   isle.Digest `json:"origin,omitempty"` // the snapshot of it that the next one was copied from
}

// maxAncestors bounds how many a record names.
const maxAncestors = 64

// A Service is the record of one service of an environment.
type Service struct {
	Name     string      `json:"name"`
	Launch   isle.ID     `json:"launch"` // of the current launch; a replacement has another
	Image    image.Image `json:"image"`
	Digest   isle.Digest `json:"digest"` // of the image
	Config   isle.Digest `json:"config"` // of everything else that, when changed, replaces the service
	Phase    Phase       `json:"phase"`
	Restarts int         `json:"restarts"`
	ExitCode *int        `json:"exit_code,omitempty"` // 128+n for signal n
	Message  string      `json:"message,omitempty"`   // why it is as it is, for people
	Started  time.Time   `json:"started,omitzero"`
	// SecretHash is the SHA-256 of the one-launch secret. The secret itself is
	// never stored.
	SecretHash isle.Digest     `json:"secret_hash"`
	Forked     bool            `json:"forked,omitempty"` // its on_fork has succeeded
	Ports      []PublishedPort `json:"ports,omitempty"`
}

// A PublishedPort is a service's port as reached through the server.
type PublishedPort struct {
	Name   string `json:"name"`
	Number int    `json:"number"` // inside
	Host   int    `json:"host"`   // on 127.0.0.1; stable for (ref, service, name)
	URL    string `json:"url,omitempty"`
}

// A Volume is a writable folder of one service, kept across launches.
type Volume struct {
	ID          isle.ID   `json:"id"`
	Ref         isle.Ref  `json:"ref"`     // the environment's
	Project     string    `json:"project"` // the environment's: data is never handed to another project that takes the name
	Service     string    `json:"service"`
	Path        string    `json:"path"`
	Size        int64     `json:"size"`  // bytes
	Ready       bool      `json:"ready"` // setup has succeeded; until then it is made anew at each launch
	Created     time.Time `json:"created"`
	DeleteAfter time.Time `json:"delete_after,omitzero"` // set when a ttl ended
	// For is the instance that alone has it, while that is staged.
	For isle.ID `json:"for,omitempty"`
	// Baseline is what a seeded volume began as (isle run --copy); diff is
	// against it.
	Baseline isle.Digest `json:"baseline,omitempty"`
}

package environment

import (
	"context"
	"time"

	"isle"
	"isle/internal/audit"
)

// A Store keeps environments and volumes. A change and the audit entries that
// belong to it are one transaction, and durable when the method returns.
type Store interface {
	// Update makes one change, whole or not at all. It fails with Conflict if
	// another instance's record has the Ref of one that is put, unless one of the
	// two is Staged.
	Update(ctx context.Context, c Mutation) error
	// Append writes entries that belong to no change of this store.
	Append(ctx context.Context, entries ...audit.Entry) error
	// Environments returns all records, oldest first.
	Environments(ctx context.Context) ([]Environment, error)
	// Volumes returns all volumes, oldest first.
	Volumes(ctx context.Context) ([]Volume, error)
	// OpenIntents returns the intents that have no outcome, oldest first.
	OpenIntents(ctx context.Context) ([]audit.Entry, error)
}

// A Mutation is what one transaction does to a Store, with the audit entries
// that describe it. What is put replaces what has the same ID; to remove what
// is not there succeeds.
type Mutation struct {
	PutEnvironments    []Environment
	RemoveEnvironments []isle.ID
	PutVolumes         []Volume
	RemoveVolumes      []isle.ID
	Entries            []audit.Entry
}

// Ports remembers which host port was given to which published port, so that
// it stays the same over teardown and launch.
type Ports interface {
	// Port returns the host port remembered for (ref, service, name), 0 if none.
	Port(ctx context.Context, ref isle.Ref, service, name string) (int, error)
	// SetPort remembers one. It fails with Conflict if the host port is
	// remembered for another published port.
	SetPort(ctx context.Context, ref isle.Ref, service, name string, port int) error
	// ForgetPorts forgets all of an environment's.
	ForgetPorts(ctx context.Context, ref isle.Ref) error
}

// A Clock tells the time; tests have their own.
type Clock func() time.Time

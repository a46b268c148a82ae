package environment

import (
	"context"
	"time"

	"isle"
	"isle/internal/audit"
)

// A Store keeps environments and volumes. A method that changes something
// writes the audit entries of the change in the same transaction, and both are
// durable when it returns.
type Store interface {
	// PutEnvironment inserts or replaces the record of an instance. It fails
	// with Conflict if another live instance has the Ref.
	PutEnvironment(ctx context.Context, e Environment, entries ...audit.Entry) error
	// DeleteEnvironment removes a record.
	DeleteEnvironment(ctx context.Context, instance isle.ID, entries ...audit.Entry) error
	// Environments returns all records, oldest first.
	Environments(ctx context.Context) ([]Environment, error)
	PutVolume(ctx context.Context, v Volume, entries ...audit.Entry) error
	DeleteVolume(ctx context.Context, id isle.ID, entries ...audit.Entry) error
	// Volumes returns all volumes, oldest first.
	Volumes(ctx context.Context) ([]Volume, error)
	// Append writes entries that belong to no change of this store.
	Append(ctx context.Context, entries ...audit.Entry) error
}

// Ports remembers which host port was given to which published port, so that
// it stays the same over teardown and launch.
type Ports interface {
	// Port returns the host port remembered for (ref, service, name), 0 if none.
	Port(ctx context.Context, ref isle.Ref, service, name string) (int, error)
	SetPort(ctx context.Context, ref isle.Ref, service, name string, port int) error
}

// A Clock tells the time; tests have their own.
type Clock func() time.Time

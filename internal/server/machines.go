package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"isle"
	"isle/internal/api"
	"isle/internal/identity"
)

// openIdentities opens what the server knows of machines and tokens. Where an
// older state was accepted, every credential of before ends first: what was
// revoked since would count again in it.
func (r *rooms) openIdentities() (err error) {
	ctx := context.Background()
	r.machines, err = identity.OpenRegistry(ctx, identity.RegistryConfig{
		Store: r.store, Log: r.store, Known: known, Groups: api.GroupsOf, Now: r.policy.Now, Slog: r.server.log,
	})
	if err != nil {
		return err
	}
	return r.book.endCredentials(ctx, r.machines.EndAll)
}

// known reports whether a person is a user of the machine. Where the machine's
// files cannot be read nobody is said to be gone.
func known(person string) bool {
	if person == api.Root {
		return true
	}
	if uid, ok := strings.CutPrefix(person, "uid:"); ok {
		_, err := user.LookupId(uid)
		return err == nil // then they have a name, and are called by it
	}
	_, err := user.Lookup(person)
	_, unknown := errors.AsType[user.UnknownUserError](err)
	return !unknown
}

// reaches is the package's, and of machines says whether they count.
func (r *rooms) reaches(group string) func(subject string) bool {
	people := reaches(group)
	return func(subject string) bool {
		name, ok := strings.CutPrefix(subject, string(isle.Machine)+":")
		if !ok {
			return people(subject)
		}
		m, ok := r.machines.Machine(name)
		return ok && r.machines.StateOf(m) == identity.Active
	}
}

// endingFile stands in the state folder from before an older state is accepted
// until every credential of before has ended: a server that dies in between ends
// them at the next start.
const endingFile = "credentials.ending"

// markEnding says durably that every credential of before is to end, and why.
func (b *logbook) markEnding(why string) error {
	err := os.WriteFile(b.ending, []byte(why), 0o600)
	if err == nil {
		err = errors.Join(syncPath(b.ending), syncPath(filepath.Dir(b.ending)))
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "it cannot be written down that earlier credentials end: %w", err)
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// endCredentials ends every credential of before, where that is to be done.
func (b *logbook) endCredentials(ctx context.Context, ends ...func(ctx context.Context, why string) error) error {
	why, err := os.ReadFile(b.ending)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return isle.Errorf(isle.Unavailable, "cannot see whether earlier credentials are to end: %w", err)
	}
	for _, end := range ends {
		if err := end(ctx, string(why)); err != nil {
			return err
		}
	}
	if err := os.Remove(b.ending); err != nil {
		return isle.Errorf(isle.Unavailable, "it cannot be noted that earlier credentials have ended: %w", err)
	}
	return nil
}

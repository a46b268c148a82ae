package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/api"
	"isle/internal/secret"
)

const (
	// DefaultKeys is the folder that holds, for each state folder, the key that
	// its secrets are sealed under.
	DefaultKeys = "/var/lib/isle-keys"
	// DefaultSecretFiles is the folder below which files may be named as secrets.
	DefaultSecretFiles = "/etc/isle/secrets"
)

// KeysPath is where the key of a state folder's secrets is, below the folder of
// keys ("" for the default one).
func KeysPath(keys, state string) string {
	if keys == "" {
		keys = DefaultKeys
	}
	return keptFor(keys, state)
}

// openSecrets opens the key and the secrets. A key that is missing stops
// neither the server nor what runs without secrets.
func (r *rooms) openSecrets(ctx context.Context) (err error) {
	cfg := r.server.cfg
	path := KeysPath(cfg.Keys, cfg.State)
	if cfg.Keys == "" && within(cfg.State, path) {
		return isle.Errorf(isle.Invalid, "the state folder %s would hold the key of its own secrets, at %s: a copy of it would open them", cfg.State, path).
			WithHint("choose another state folder; or say where keys are with --keys")
	}
	r.key, err = secret.UseKey(ctx, secret.KeyConfig{
		Store: r.store, Path: path, Anew: cfg.NewKey, Log: r.server.log,
	})
	if err != nil {
		return err
	}
	r.secrets, err = secret.Open(ctx, secret.Config{
		Store: r.store, Sealer: r.key, Log: r.store, Slog: r.server.log,
		Getenv: r.server.variables.get, Files: cfg.SecretFiles, Vault: cfg.Vault,
	})
	return err
}

// within says whether a path is dir or below it. Links are followed as far as
// they lead somewhere.
func within(dir, path string) bool {
	resolve := func(p string) string {
		for rest := ""; ; p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest) {
			if real, err := filepath.EvalSymlinks(p); err == nil || p == filepath.Dir(p) {
				return filepath.Join(real, rest)
			}
		}
	}
	rel, err := filepath.Rel(resolve(dir), resolve(path))
	return err == nil && filepath.IsLocal(rel)
}

// checkSecrets says whether secrets can be used.
func (r *rooms) checkSecrets() api.Check {
	c := api.Check{Name: "secrets", State: api.CheckOK, Message: "sealed under the key at " + r.key.Path()}
	err := r.key.Err()
	if err == nil {
		err = r.secrets.Err()
	}
	switch {
	case err != nil:
		flat := api.Flatten(err)
		c.State, c.Message, c.Remedy = api.CheckWarning, "no stored secret can be used: "+flat.Message, flat.Hint
	case within(r.server.cfg.State, r.key.Path()):
		c.State, c.Message = api.CheckWarning, "the key "+r.key.Path()+" is inside the state folder: who has a copy of the folder has the secrets"
		c.Remedy = "move it out, and say where it is with --keys"
	}
	return c
}

// variables are those of the server's environment that are secrets. They are
// taken out of the environment, so that no program that the server starts has
// them too.
type variables map[string]string

func takeVariables() variables {
	v := variables{}
	for _, kv := range os.Environ() {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, secret.VariablePrefix) {
			v[name] = value
			os.Unsetenv(name)
		}
	}
	return v
}

func (v variables) get(name string) (string, bool) {
	value, ok := v[name]
	return value, ok
}

// pass returns them for the environment of a successor.
func (v variables) pass() (out []string) {
	for name, value := range v {
		out = append(out, name+"="+value)
	}
	return out
}

// keepMemory keeps this process's memory, in which keys and secrets are, out of
// core dumps, whatever the machine does with those, and from whoever is not
// root (PR_SET_DUMPABLE, prctl(2)). Programs that are started have dumps as
// before: a limit (RLIMIT_CORE) would be theirs too.
func keepMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return isle.Errorf(isle.Internal, "cannot turn off core dumps: %w", err)
	}
	return nil
}

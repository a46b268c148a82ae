package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/checkout"
	"isle/internal/compose"
	"isle/internal/image/registry"
	"isle/internal/spec"
)

// fileName is what an environment file is called where only its folder is
// given.
const fileName = "isle.yaml"

// A project is an environment file, its lock and its folder, as they were read.
type project struct {
	path     string // of the file
	lockPath string
	dir      string // that copy: is relative to
	data     []byte
	lock     []byte // nil if there is none
	file     spec.File
	checkout *checkout.Checkout // of dir; nil where there is none, or it cannot be read
	noGit    error              // why it cannot be read
	noFork   bool               // its environment begins without another's data
	// Of a file of another tool's: what was read besides it, what is laid over it,
	// which profiles were asked for, and what is done in another way.
	reads, laid, profiles []string
	notes                 []compose.Note
	// What build steps are given: of the command line, and of a Compose file.
	secrets []givenSecret
	ofFile  []compose.BuildSecret
	// credentials are for registries that asked for one.
	credentials []*islev1.RegistryCredential
}

// readProject reads [DIR|FILE]; "" is the current folder. A folder without a
// file is looked for upwards, as git does; where there is none, it is a Compose
// file, of which profiles are asked for, or devcontainer.json of the folder itself.
func readProject(arg string, profiles ...string) (*project, error) {
	path := arg
	if path == "" {
		path = "."
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", path, cause(err)).WithHint("name a folder with an isle.yaml, or a file")
	}
	var over []string
	if st.IsDir() {
		if path, over, err = findFile(path, arg == ""); err != nil {
			return nil, err
		}
	}
	var p *project
	if compose.IsName(path) {
		p, err = readConverted(path, over, profiles)
	} else {
		p, err = readOwn(path)
	}
	if err != nil {
		return nil, err
	}
	return p, p.readBeside()
}

// readOwn reads an isle.yaml.
func readOwn(path string) (*project, error) {
	data, err := readBounded(path, spec.MaxFileSize)
	if err != nil {
		return nil, err
	}
	file, err := spec.Parse(path, data)
	if err != nil {
		return nil, err
	}
	return &project{
		path: path, dir: filepath.Dir(path), data: data, file: file,
		lockPath: strings.TrimSuffix(strings.TrimSuffix(path, ".yaml"), ".yml") + ".lock",
	}, nil
}

// again reads the project as it is now.
func (p *project) again() (next *project, err error) {
	if len(p.reads) > 0 {
		next, err = readConverted(p.path, p.laid, p.profiles)
	} else {
		next, err = readOwn(p.path)
	}
	if err != nil {
		return nil, err
	}
	next.noFork, next.secrets = p.noFork, p.secrets
	return next, next.readBeside()
}

// readBeside reads what lies beside the file: git's state, and the lock.
func (p *project) readBeside() (err error) {
	if p.checkout, err = checkout.Find(p.dir); isle.CodeOf(err) != isle.NotFound {
		p.noGit = err
	}
	p.lock, err = readBounded(p.lockPath, spec.MaxLockSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// findFile is the environment file of a folder, or of the nearest one above it;
// else what of the folder is converted to one, with what is laid over that.
func findFile(dir string, upwards bool) (path string, over []string, err error) {
	path = filepath.Join(dir, fileName)
	if _, err := os.Stat(path); err == nil {
		return path, nil, nil
	}
	if abs, err := filepath.Abs(dir); err == nil && upwards {
		for abs != "/" {
			abs = filepath.Dir(abs)
			if p := filepath.Join(abs, fileName); fileExists(p) {
				return p, nil, nil
			}
		}
	}
	if name, over := compose.Find(dir); name != "" {
		return filepath.Join(dir, filepath.FromSlash(name)), over, nil
	}
	return "", nil, isle.Errorf(isle.NotFound, "there is no %s in %s", fileName, dir).WithHint("write one with `isle init`, or name a folder that has one, or a Compose file")
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// readBounded reads a file of at most limit bytes. What lies in a folder that
// somebody sent may be a link to a device that never ends.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", name, cause(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, isle.Errorf(isle.NotFound, "cannot read %s: %w", name, cause(err))
	}
	if int64(len(b)) > limit {
		return nil, isle.Errorf(isle.Invalid, "%s has more than %s, which is the most that is read", name, bytesText(limit))
	}
	return b, nil
}

// cause is what a file operation failed for, without the path, which the
// message around it names.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// name is the environment's name: the project on the default branch or without
// git, else project and branch.
func (p *project) name() (name string, derived bool, err error) {
	if p.noGit != nil {
		e, _ := errors.AsType[*isle.Error](p.noGit)
		return "", false, e.WithHint("mend it, or name the environment with --name")
	}
	if p.checkout == nil || p.checkout.Branch == "" || p.checkout.Default {
		return p.file.Name, true, nil
	}
	return isle.Slug(p.file.Name + "-" + p.checkout.Branch), true, nil
}

// A hashed is a source with the content of its copied trees, which is sent when
// the server lacks it.
type hashed struct {
	source  *islev1.Source
	content map[isle.Digest]content
}

// A content is the bytes of one digest: a tree's encoding, or a local file.
type content struct {
	bytes []byte
	path  string
}

// hash reads every copied tree. It runs each time: what is launched is what
// the files are now.
func (p *project) hash(ctx context.Context) (*hashed, error) {
	h := &hashed{
		source:  &islev1.Source{Spec: p.data, SpecName: p.path, Lock: p.lock, Credentials: p.credentials},
		content: map[isle.Digest]content{},
	}
	cache := fileCache()
	for _, s := range p.file.Services {
		if path, ok := s.ImagePath(); ok {
			tree, files, err := spec.HashFiles(ctx, p.dir, path, cache)
			if err != nil {
				return nil, err
			}
			h.add(s.Name, path, "", tree, files)
		}
		if s.Build != nil {
			if err := p.hashBuild(ctx, h, s, cache); err != nil {
				return nil, err
			}
		}
		for _, c := range s.Copy {
			tree, files, err := spec.HashCopy(ctx, p.dir, filepath.Base(p.lockPath), c.From, cache)
			if err != nil {
				return nil, err
			}
			h.add(s.Name, c.From, c.To, tree, files)
		}
	}
	if cache != nil {
		_ = cache.Save() // without it the next run reads the files again
	}
	return h, nil
}

// hashBuild reads what a Dockerfile's build sees, and the Dockerfile.
func (p *project) hashBuild(ctx context.Context, h *hashed, s spec.Service, cache *spec.Cache) error {
	tree, files, err := spec.HashContext(ctx, p.dir, filepath.Base(p.lockPath), *s.Build, cache)
	if err != nil {
		return err
	}
	h.add(s.Name, s.Build.Context, "", tree, files)
	if tree, files, err = spec.HashFiles(ctx, p.dir, s.Build.File(), cache); err != nil {
		return err
	}
	h.add(s.Name, s.Build.File(), "", tree, files)
	return nil
}

// meet gives the server what it needs: files, or credentials for registries, which
// go with the next call.
func (p *project) meet(ctx context.Context, c *api.Client, h *hashed, need *islev1.Need, show *progress) error {
	if len(need.GetRegistries()) > 0 {
		return p.login(ctx, need.GetRegistries())
	}
	return h.send(ctx, c, show)
}

// login looks up what Docker's configuration has for registries.
func (p *project) login(ctx context.Context, registries []string) (err error) {
	p.credentials, err = registryLogins(ctx, p.credentials, registries)
	return err
}

// registryLogins are credentials, and those of registries more.
func registryLogins(ctx context.Context, have []*islev1.RegistryCredential, registries []string) ([]*islev1.RegistryCredential, error) {
	for _, r := range registries {
		if slices.ContainsFunc(have, func(c *islev1.RegistryCredential) bool { return c.GetRegistry() == r }) {
			return nil, isle.Errorf(isle.Refused, "the registry %s does not take the credential of Docker's configuration", r).WithHint("log in again: docker login %s", r)
		}
		c, err := registry.FromDocker(ctx, registry.DockerConfig(), r)
		if isle.CodeOf(err) == isle.NotFound {
			return nil, isle.Errorf(isle.Refused, "the registry %s wants a login for this image, or does not have it: %w", r, err).WithHint("log in: docker login %s", r)
		} else if err != nil {
			return nil, err
		}
		have = append(have, &islev1.RegistryCredential{Registry: r, Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken})
	}
	return have, nil
}

// add puts a tree into the source, and its content into what may be sent.
func (h *hashed) add(service, from, to string, tree spec.Tree, files map[isle.Digest]string) {
	encoded := tree.Encode()
	d := isle.DigestOf(encoded)
	h.content[d] = content{bytes: encoded}
	for digest, path := range files {
		h.content[digest] = content{path: path}
	}
	h.source.Trees = append(h.source.Trees, &islev1.CopiedTree{Service: service, From: from, To: to, Digest: string(d)})
}

// fileCache remembers the digests of this user's files, so that what did not
// change is not read again; nil where there is no place for it.
func fileCache() *spec.Cache {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return spec.OpenCache(filepath.Join(dir, "isle", "files"))
}

// writeLock puts the lock beside the file, whole or not at all.
func (p *project) writeLock(lock []byte) error {
	if len(lock) == 0 || string(lock) == string(p.lock) || p.lockPath == "" {
		return nil
	}
	if err := writeAtomically(p.lockPath, lock); err != nil {
		return isle.Errorf(isle.Unavailable, "cannot write %s: %w", p.lockPath, cause(err)).WithHint("the environment is locked in the server only; make the folder writable and run `isle lock`")
	}
	p.lock = lock
	return nil
}

// writeAtomically replaces a file, keeping its mode.
func writeAtomically(name string, data []byte) (err error) {
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(name); err == nil {
		mode = st.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	return err
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/spec"
)

// seedSize is the size of the volume that `isle run --copy` fills.
const seedSize = "1GiB"

// lockLife is how long `isle run --packages` uses the packages it chose before
// it chooses anew.
const lockLife = 24 * time.Hour

type runOptions struct {
	execOptions
	packages []string
	copies   []string
	suite    string
	class    string // of isolation; "": FILE's, or gVisor
	from     string
	name     string
	mirror   string
	keep     bool
	profiles []string
	secrets  []string
}

func newRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [--packages A,B | FILE | --from ENV|SNAPSHOT] [--copy SRC:DST] -- CMD…",
		Short: "Run a command in an environment of its own, then tear it down",
		Long: `Launch a one-shot environment, run a command in it, pass its output and exit code
through, and tear it down: also on Ctrl-C, and when this program is killed. It reaches
nothing outside. --copy fills a writable volume with local files; 'isle diff' and
'isle cp' bring changes back out of an environment that --keep left.

The environment is made of --packages (Debian's), or of FILE's services; then CMD runs
in the first one. Packages chosen for --packages are used for a day. With --from it is
a copy of an environment as it is now, or of a snapshot: see 'isle fork'.

Its class of isolation is gvisor, where FILE names none: what runs once is often what
nobody has read. 'isolation: container' in FILE, or --isolation container, starts faster.`,
		Example: `  isle run --packages python3 -- python3 -c 'print(1)'
  isle run --packages golang --copy .:/workspace -w /workspace -- go test ./...
  isle run --packages bash -t -- bash
  isle run --from shop -s db -- psql -U postgres -c 'drop table orders'`,
		Args: func(cmd *cobra.Command, given []string) error {
			dash := cmd.ArgsLenAtDash()
			if dash < 0 || dash > 1 || dash == len(given) {
				return usagef("isle run takes at most one file, then -- and a command").WithHint("for example: isle run --packages python3 -- python3 -c 'print(1)'")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			dash := cmd.ArgsLenAtDash()
			if o.from != "" {
				return a.runFrom(cmd.Context(), o, first(given[:dash]), given[dash:])
			}
			return a.run(cmd.Context(), o, first(given[:dash]), given[dash:])
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&o.packages, "packages", nil, "Debian packages, separated by commas")
	f.StringVar(&o.from, "from", "", "run in a copy of this environment, or of this snapshot")
	f.StringArrayVar(&o.copies, "copy", nil, "fill a volume at DST with SRC: SRC:DST (may be repeated)")
	f.StringVar(&o.suite, "suite", "", "Debian suite of --packages (default bookworm)")
	f.StringVar(&o.class, "isolation", "", "class of isolation of --packages: gvisor or container (default gvisor)")
	f.StringVar(&o.name, "name", "", "name of the environment (default: made up)")
	f.StringVar(&o.mirror, "mirror", "", "base URL of the Debian mirror (default: the server's)")
	f.BoolVar(&o.keep, "keep", false, "leave the environment when the command ends")
	f.BoolVarP(&o.terminal, "terminal", "t", false, "give the command a terminal")
	addProfiles(cmd, &o.profiles)
	addSecrets(cmd, &o.secrets)
	f.StringVarP(&o.service, "service", "s", "", "service of FILE to run in (default: the first)")
	return cmd
}

// A seed is a --copy: local files that fill a volume.
type seed struct{ from, to string }

func (o runOptions) seeds() ([]seed, error) {
	var out []seed
	for _, c := range o.copies {
		i := strings.LastIndex(c, ":")
		if i <= 0 || !filepath.IsAbs(c[i+1:]) || filepath.Clean(c[i+1:]) == "/" {
			return nil, usagef("--copy %q: want SRC:DST with an absolute DST, for example .:/workspace", c)
		}
		from := c[:i]
		if _, err := os.Stat(from); err != nil {
			return nil, isle.Errorf(isle.NotFound, "--copy: cannot read %s: %w", from, cause(err))
		}
		out = append(out, seed{from, filepath.Clean(c[i+1:])})
	}
	return out, nil
}

// request is what is launched.
func (o runOptions) request() (*islev1.UpRequest, error) {
	req := &islev1.UpRequest{Name: o.name, Stage: isle.DefaultStage, Mirror: o.mirror, OneShot: !o.keep}
	if o.name == "" {
		id := string(isle.NewID())
		req.Name = isle.Slug("run-" + id[len(id)-8:])
	} else if !isle.ValidName(o.name) {
		return nil, usagef("--name %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", o.name)
	}
	return req, nil
}

// run launches, fills, executes and tears down.
func (a *app) run(ctx context.Context, o runOptions, file string, command []string) error {
	seeds, err := o.seeds()
	if err != nil {
		return err
	}
	p, err := o.project(file, seeds)
	if err != nil {
		return err
	}
	a.tell(p)
	req, err := o.request()
	if err != nil {
		return err
	}
	start, err := o.start(isle.Ref{Name: req.Name, Stage: req.Stage}, command)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}

	// The environment lives as long as the call: should this program be killed,
	// the server sees the call end and tears down. Once it is up, Ctrl-C ends the
	// command first and then tears down from here.
	calls, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	interruptible := context.AfterFunc(ctx, hangUp)
	show := a.quietProgress()
	defer show.close()
	res, err := upProject(calls, c, p, req, show)
	interruptible()
	if err != nil {
		return err
	}
	return a.runIn(ctx, o, c, res.GetEnvironment(), start, seeds, show)
}

// runIn fills, executes and tears down.
func (a *app) runIn(ctx context.Context, o runOptions, c *api.Client, e *islev1.Environment, start *islev1.ExecStart, seeds []seed, show *progress) (err error) {
	defer func() {
		if derr := o.end(ctx, a, c, e, show); err == nil {
			err = derr
		}
	}()
	for _, s := range seeds {
		if err := copyIn(ctx, c, show, seedTarget(start, s), s.from, true); err != nil {
			return err
		}
	}
	show.close()
	return a.exec(ctx, c, start)
}

// runFrom is run in a copy.
func (a *app) runFrom(ctx context.Context, o runOptions, file string, command []string) error {
	switch {
	case file != "":
		return usagef("--from says what the environment is made of; %s is another way to", file)
	case len(o.packages) > 0 || o.suite != "" || o.mirror != "" || o.class != "" || len(o.secrets) > 0:
		return usagef("--from says what the environment is made of; --packages, --suite, --isolation, --secret and --mirror are for another way")
	}
	seeds, err := o.seeds()
	if err != nil {
		return err
	}
	req, err := forkOptions{name: o.name, n: 1}.request(o.from)
	if err != nil {
		return err
	}
	req.OneShot = !o.keep
	start, err := o.start(isle.Ref{}, command)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	calls, hangUp := context.WithCancel(context.WithoutCancel(ctx)) // as in run
	defer hangUp()
	interruptible := context.AfterFunc(ctx, hangUp)
	show := a.quietProgress()
	defer show.close()
	res, err := fork(calls, c, req, show)
	interruptible()
	if err != nil {
		return err
	}
	e := res.GetEnvironments()[0]
	start.Environment = refText(e)
	return a.runIn(ctx, o, c, e, start, seeds, show)
}

// end tears down, or says where to find what was kept.
func (o runOptions) end(ctx context.Context, a *app, c *api.Client, e *islev1.Environment, show *progress) error {
	ref := refText(e)
	if o.keep {
		show.note("%s is kept: isle exec %s -- CMD · isle diff %s · isle cp %s:PATH . · isle down %s --volumes", ref, ref, ref, ref, ref)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := down(ctx, c, show, &islev1.DownRequest{Environments: []string{ref}, Volumes: true})
	if isle.CodeOf(err) == isle.NotFound {
		return nil
	}
	return err
}

// quietProgress shows nothing where nobody looks: the output is the command's.
func (a *app) quietProgress() *progress {
	p := a.newProgress()
	if p.style == plainProgress {
		p.w = discard{}
	}
	return p
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// project is FILE, or a file made of the flags.
func (o runOptions) project(file string, seeds []seed) (*project, error) {
	if file != "" {
		if len(o.packages) > 0 || o.suite != "" || o.class != "" {
			return nil, usagef("--packages, --suite and --isolation make an environment without a file; %s is one", file)
		}
		p, err := readProject(file, o.profiles...)
		if err != nil {
			return nil, err
		}
		if p.secrets, err = parseSecrets(o.secrets); err != nil {
			return nil, err
		}
		return p, o.checkSeeds(p, seeds)
	}
	if len(o.secrets) > 0 {
		return nil, usagef("--secret is for the steps of a file's builds")
	}
	if len(o.packages) == 0 {
		return nil, usagef("isle run takes --packages or a file").WithHint("for example: isle run --packages python3 -- python3 -c 'print(1)'")
	}
	service := map[string]any{"packages": o.packages}
	if o.suite != "" {
		service["suite"] = o.suite
	}
	if len(seeds) > 0 {
		volumes := map[string]any{}
		for _, s := range seeds {
			volumes[s.to] = map[string]string{"size": seedSize}
		}
		service["volumes"] = volumes
	}
	class := o.class
	if class == "" {
		class = spec.Gvisor
	}
	data, err := json.Marshal(map[string]any{"name": "run", "isolation": class, "services": map[string]any{"main": service}}) // JSON is YAML
	if err != nil {
		return nil, isle.Errorf(isle.Internal, "cannot write an environment file: %w", err)
	}
	f, err := spec.Parse("--packages", data)
	if err != nil {
		return nil, err
	}
	p := &project{path: "--packages", dir: ".", data: data, file: f, lockPath: runLock(f)}
	if p.lockPath == "" {
		return p, nil
	}
	if st, err := os.Stat(p.lockPath); err == nil && time.Since(st.ModTime()) < lockLife {
		p.lock, _ = readBounded(p.lockPath, spec.MaxLockSize)
	}
	if os.MkdirAll(filepath.Dir(p.lockPath), 0o700) != nil {
		p.lockPath = "" // somebody else's home: what is chosen is chosen for now
	}
	return p, nil
}

// runLock is where the lock of --packages is kept, "" if there is no place.
func runLock(f spec.File) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	s := f.Services[0]
	key := isle.DigestOf([]byte(fmt.Sprintf("%s %q", s.Suite, s.Packages)))
	return filepath.Join(cache, "isle", "run", key.Short()+".lock")
}

// checkSeeds refuses to fill what is no volume: nothing else can be written.
func (o runOptions) checkSeeds(p *project, seeds []seed) error {
	service := p.file.Services[0]
	if o.service != "" {
		s, ok := p.file.Service(o.service)
		if !ok {
			return isle.Errorf(isle.NotFound, "%s has no service %q", p.path, o.service)
		}
		service = s
	}
	for _, s := range seeds {
		found := false
		for _, v := range service.Volumes {
			found = found || v.Path == s.to || strings.HasPrefix(s.to, v.Path+"/")
		}
		if !found {
			return isle.Errorf(isle.Invalid, "--copy: %s is in no volume of service %s, and nothing else can be written", s.to, service.Name).
				WithHint("add to the service: volumes: {%s: {size: %s}}", s.to, seedSize)
		}
	}
	return nil
}

// seedTarget is the place that a seed fills.
func seedTarget(start *islev1.ExecStart, s seed) place {
	return place{ref: start.Environment, service: start.Service, path: s.to}
}

package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/reflect/protoreflect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/audit"
	"isle/internal/build"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/policy"
	"isle/internal/seal"
	"isle/internal/spec"
)

// rooms stands in for everything behind the API. It counts what reaches it.
type rooms struct {
	mu      sync.Mutex
	reached []string
	entries []audit.Entry
	read    []audit.Entry // those of reads

	up      func(ctx context.Context, req environment.UpRequest) (environment.UpResult, error)
	build   func(ctx context.Context, p build.Progress) (build.Result, error)
	process environment.Process
	envs    map[isle.Ref]environment.Environment
	got     []byte
	missing []isle.Digest
	volumes []environment.Volume
	full    error // of the log
	files   map[isle.Ref]map[string]spec.Tree
	moved   *environment.ForkPlan // what is copied, where that is not what was planned
}

func (r *rooms) reach(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reached = append(r.reached, name)
}

func (r *rooms) seen(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.reached {
		if n == name {
			return true
		}
	}
	return false
}

func (r *rooms) Up(ctx context.Context, actor isle.Actor, req environment.UpRequest, _ func(environment.Progress)) (environment.UpResult, error) {
	r.reach("Up")
	if r.up != nil {
		return r.up(ctx, req)
	}
	e := environment.Environment{Ref: req.Ref, Owner: actor, OneShot: req.OneShot, Project: req.Project, Branch: req.Branch}
	r.mu.Lock()
	r.envs[req.Ref] = e
	r.mu.Unlock()
	return environment.UpResult{Environment: e, Changed: true}, nil
}
func (r *rooms) Down(_ context.Context, _ isle.Actor, ref isle.Ref, _ bool, _ func(environment.Progress)) error {
	r.mu.Lock()
	_, ok := r.envs[ref]
	delete(r.envs, ref)
	r.mu.Unlock()
	r.reach("Down")
	if !ok {
		return isle.Errorf(isle.NotFound, "there is no environment %s", ref).WithHint("see `isle ls`")
	}
	return nil
}
func (r *rooms) HoldRequests(context.Context, isle.Ref) (func(), error) {
	r.reach("HoldRequests")
	return func() {}, nil
}

func (r *rooms) Extend(context.Context, isle.Actor, isle.Ref, time.Duration, bool) (time.Time, error) {
	r.reach("Extend")
	return time.Time{}, nil
}
func (r *rooms) List(context.Context) ([]environment.Environment, error) {
	r.reach("List")
	return []environment.Environment{{Ref: isle.Ref{Name: "shop", Stage: "testing"}}}, nil
}
func (r *rooms) Get(_ context.Context, ref isle.Ref) (environment.Environment, error) {
	r.reach("Get")
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.envs[ref]; ok {
		return e, nil
	}
	return environment.Environment{}, isle.Errorf(isle.NotFound, "there is no environment %s", ref).WithHint("see `isle ls`")
}
func (r *rooms) Usage(context.Context, isle.Ref) (environment.Usage, error) {
	return environment.Usage{}, nil
}
func (r *rooms) Kept(context.Context) []isle.Ref { return nil }
func (r *rooms) Asides(context.Context, isle.Ref) []environment.Environment {
	return nil
}
func (r *rooms) VolumesOf(_ context.Context, ref isle.Ref) (out []environment.Volume, err error) {
	for _, v := range r.volumes {
		if v.Ref == ref {
			out = append(out, v)
		}
	}
	return out, nil
}
func (r *rooms) VolumeUsed(isle.ID) (int64, error) { return 0, nil }
func (r *rooms) Doors(context.Context, isle.Actor, isle.Ref) ([]environment.Door, error) {
	r.reach("Doors")
	return nil, nil
}
func (r *rooms) Exec(_ context.Context, _ isle.Actor, _ isle.Ref, _ string, _ environment.Exec) (environment.Process, error) {
	r.reach("Exec")
	return r.process, nil
}
func (r *rooms) Forward(context.Context, isle.Actor, isle.Ref, string, int) (io.ReadWriteCloser, error) {
	r.reach("Forward")
	a, b := net.Pipe()
	go func() { io.Copy(b, b); b.Close() }()
	return a, nil
}
func (r *rooms) CopyIn(_ context.Context, _ isle.Actor, _ isle.Ref, _, _ string, _ bool, tar io.Reader) error {
	r.reach("CopyIn")
	b, err := io.ReadAll(tar)
	r.got = b
	return err
}
func (r *rooms) CopyOut(_ context.Context, _ isle.Actor, _ isle.Ref, _, _ string, tar io.Writer) error {
	r.reach("CopyOut")
	_, err := tar.Write(make([]byte, 3*maxChunk+1))
	return err
}
func (r *rooms) Folder(context.Context, isle.Actor, isle.Ref, string, string) ([]environment.File, error) {
	r.reach("Folder")
	return []environment.File{{Name: "a", Type: "file"}}, nil
}
func (r *rooms) Diff(context.Context, isle.Actor, isle.Ref, string) ([]environment.Change, error) {
	r.reach("Diff")
	return nil, nil
}
func (r *rooms) Files(_ context.Context, _ isle.Actor, ref isle.Ref, _ string) (map[string]spec.Tree, error) {
	r.reach("Files")
	return r.files[ref], nil
}
func (r *rooms) Undeclared(context.Context, isle.Ref) (map[string][]string, error) {
	r.reach("Undeclared")
	return nil, nil
}
func (r *rooms) Compare(_ context.Context, a, b image.Image) (image.Comparison, error) {
	r.reach("Compare")
	return image.Comparison{Gone: a.Layers, New: b.Layers}, nil
}
func (r *rooms) Packages(_ context.Context, m image.Image) (map[string]string, error) {
	r.reach("Packages")
	return map[string]string{m.Layers[0].Title: "1"}, nil
}
func (r *rooms) Logs(context.Context, isle.Actor, isle.Ref, environment.LogOptions, func(environment.LogLine) error) error {
	r.reach("Logs")
	return nil
}

func (r *rooms) Lock(_ context.Context, _ spec.File, old *spec.Lock, _ []build.Copied, _ build.LockOptions, _ build.Progress) (*spec.Lock, []string, error) {
	r.reach("Lock")
	return &spec.Lock{}, nil, nil
}
func (r *rooms) Caches(string) ([]build.CacheMount, int, error) {
	r.reach("Caches")
	return nil, 0, nil
}

func (r *rooms) PruneCaches(string, time.Duration) ([]build.CacheMount, error) {
	r.reach("PruneCaches")
	return nil, nil
}

func (r *rooms) ExportCache(context.Context, *seal.Ring, string, io.Writer) (build.CacheFile, error) {
	r.reach("ExportCache")
	return build.CacheFile{}, nil
}

func (r *rooms) ImportCache(context.Context, *seal.Ring, io.Reader) (build.CacheFile, error) {
	r.reach("ImportCache")
	return build.CacheFile{}, nil
}

func (r *rooms) ForgetSteps() (int, error) {
	r.reach("ForgetSteps")
	return 0, nil
}

func (r *rooms) LockNeeds(spec.File, []build.Copied) []isle.Digest { return nil }

func (r *rooms) Needs(*spec.Lock) []isle.Digest { return nil }
func (r *rooms) Build(ctx context.Context, _ spec.File, lock *spec.Lock, _ build.Options, p build.Progress) (build.Result, error) {
	r.reach("Build")
	res := build.Result{Images: map[string]image.Image{}}
	var err error
	if r.build != nil {
		res, err = r.build(ctx, p)
	}
	res.Lock = lock
	return res, err
}
func (r *rooms) Verify(context.Context, spec.File, *spec.Lock, build.Options, build.Progress) (build.Result, error) {
	r.reach("Verify")
	return build.Result{}, nil
}
func (r *rooms) Export(context.Context, *spec.Lock, io.Writer) error {
	r.reach("Export")
	return nil
}
func (r *rooms) Import(_ context.Context, in io.Reader) (int, int64, error) {
	r.reach("Import")
	n, err := io.Copy(io.Discard, in)
	return 1, n, err
}
func (r *rooms) Missing(ds []isle.Digest) []isle.Digest {
	r.reach("Missing")
	return r.missing
}
func (r *rooms) PutBlob(_ context.Context, _ isle.Digest, in io.Reader) error {
	r.reach("PutBlob")
	b, err := io.ReadAll(in)
	r.got = append(append(r.got, '|'), b...)
	return err
}
func (r *rooms) Hold() func() { return func() {} }

func (r *rooms) HasLayer(isle.Digest) bool { return true }

func (r *rooms) Append(_ context.Context, es ...audit.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full != nil {
		return r.full
	}
	r.entries = append(r.entries, es...)
	return nil
}
func (r *rooms) Encoded(context.Context, uint64, int) ([][]byte, error) {
	r.reach("Encoded")
	return [][]byte{[]byte(`{}`)}, nil
}
func (r *rooms) Next(context.Context) (uint64, error) { return 1, nil }
func (r *rooms) AppendSoon(_ context.Context, es ...audit.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full != nil && len(es) > 0 {
		return r.full
	}
	r.read = append(r.read, es...)
	return nil
}
func (r *rooms) Head() audit.Head {
	r.reach("Head")
	return audit.Head{}
}
func (r *rooms) Hashes(context.Context) tlog.HashReader                  { return nil }
func (r *rooms) FirstSince(context.Context, time.Time) (uint64, error)   { return 0, nil }
func (r *rooms) ByID(context.Context, isle.ID) (uint64, []uint64, error) { return 0, nil, nil }

func (r *rooms) Info() Info                     { r.reach("Info"); return Info{Version: "test", PID: 1} }
func (r *rooms) Doctor(context.Context) []Check { r.reach("Doctor"); return nil }
func (r *rooms) Collect(context.Context, bool) (Collected, error) {
	r.reach("Collect")
	return Collected{}, nil
}
func (r *rooms) Stop() { r.reach("Stop") }

// process echoes its input and exits with 7 when that ends.
type process struct {
	out    chan environment.Output
	closed chan struct{}
	once   sync.Once
}

func newProcess() *process {
	return &process{out: make(chan environment.Output, 100), closed: make(chan struct{})}
}
func (p *process) Stdin() io.WriteCloser { return p }
func (p *process) Write(b []byte) (int, error) {
	p.out <- environment.Output{Data: append([]byte(nil), b...)}
	return len(b), nil
}
func (p *process) Next() (environment.Output, error) {
	select {
	case o := <-p.out:
		return o, nil
	case <-p.closed:
		return environment.Output{}, errors.New("closed")
	}
}
func (p *process) Signal(name string) error {
	p.out <- environment.Output{Stderr: true, Data: []byte(name)}
	return nil
}
func (p *process) Resize(uint16, uint16) error { return nil }
func (p *process) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// stdin is closed by the API with Close of the writer; the process ends then.
type endingProcess struct{ *process }

type endingStdin struct{ *process }

func (p endingProcess) Stdin() io.WriteCloser { return endingStdin(p) }
func (s endingStdin) Close() error {
	s.out <- environment.Output{Exit: &environment.Exit{Code: 7}}
	return nil
}

func signer(t *testing.T) *audit.Signer {
	t.Helper()
	s, err := audit.OpenSigner(filepath.Join(t.TempDir(), "key"), true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve starts a server with the rooms behind it and returns its socket.
func serve(t *testing.T, r *rooms, p Policy) string {
	t.Helper()
	if r.envs == nil {
		r.envs = map[isle.Ref]environment.Environment{}
	}
	if p == nil {
		p = newPolicy(t)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: New(Config{
			Environments: r, Builder: r, Blobs: r, Audit: r, Signer: signer(t), Host: r, Policy: p, Log: slog.New(slog.DiscardHandler),
		}),
		ConnContext: ConnContext(""), Protocols: new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return socket
}

const oneService = "name: shop\nservices:\n  web:\n    packages: [busybox-static]\n"

func source() *islev1.Source { return &islev1.Source{Spec: []byte(oneService), SpecName: "isle.yaml"} }

// calls makes every call there is; a call that is missing here fails the test
// that walks them.
func calls(ctx context.Context, c *Client) map[string]func() error {
	const env = "shop"
	drain := func(recv func() bool, err func() error) error {
		for recv() {
		}
		return err()
	}
	return map[string]func() error{
		"EnvironmentService/Up": func() error {
			s, err := c.Environments.Up(ctx, connect.NewRequest(&islev1.UpRequest{Source: source()}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"EnvironmentService/Down": func() error {
			s, err := c.Environments.Down(ctx, connect.NewRequest(&islev1.DownRequest{Environments: []string{env}}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"EnvironmentService/List": func() error {
			_, err := c.Environments.List(ctx, connect.NewRequest(&islev1.ListRequest{}))
			return err
		},
		"EnvironmentService/Get": func() error {
			_, err := c.Environments.Get(ctx, connect.NewRequest(&islev1.GetRequest{Environment: env}))
			return err
		},
		"EnvironmentService/Extend": func() error {
			_, err := c.Environments.Extend(ctx, connect.NewRequest(&islev1.ExtendRequest{Environment: env, Never: true}))
			return err
		},
		"EnvironmentService/Exec": func() error {
			s := c.Environments.Exec(ctx)
			s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: env, Command: []string{"true"}}}})
			_, err := s.Receive()
			return err
		},
		"EnvironmentService/Logs": func() error {
			s, err := c.Environments.Logs(ctx, connect.NewRequest(&islev1.LogsRequest{Environment: env}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"EnvironmentService/CopyIn": func() error {
			s := c.Environments.CopyIn(ctx)
			s.Send(&islev1.CopyInRequest{Input: &islev1.CopyInRequest_Start{Start: &islev1.CopyInStart{Environment: env, Dir: "/x"}}})
			_, err := s.CloseAndReceive()
			return err
		},
		"EnvironmentService/CopyOut": func() error {
			s, err := c.Environments.CopyOut(ctx, connect.NewRequest(&islev1.CopyOutRequest{Environment: env, Path: "/x"}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"EnvironmentService/ListFiles": func() error {
			_, err := c.Environments.ListFiles(ctx, connect.NewRequest(&islev1.ListFilesRequest{Environment: env, Path: "/x"}))
			return err
		},
		"EnvironmentService/Diff": func() error {
			_, err := c.Environments.Diff(ctx, connect.NewRequest(&islev1.DiffRequest{Environment: env}))
			return err
		},
		"EnvironmentService/PortForward": func() error {
			s := c.Environments.PortForward(ctx)
			s.Send(&islev1.PortInput{Input: &islev1.PortInput_Start{Start: &islev1.PortStart{Environment: env, Port: 80}}})
			_, err := s.Receive()
			return err
		},
		"EnvironmentService/Doors": func() error {
			_, err := c.Environments.Doors(ctx, connect.NewRequest(&islev1.DoorsRequest{Environment: env}))
			return err
		},
		"BuildService/Lock": func() error {
			s, err := c.Images.Lock(ctx, connect.NewRequest(&islev1.LockRequest{Source: source()}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"BuildService/Build": func() error {
			s, err := c.Images.Build(ctx, connect.NewRequest(&islev1.BuildRequest{Source: source()}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"BuildService/ListCaches": func() error {
			_, err := c.Images.ListCaches(ctx, connect.NewRequest(&islev1.ListCachesRequest{}))
			return err
		},
		"BuildService/PruneCaches": func() error {
			_, err := c.Images.PruneCaches(ctx, connect.NewRequest(&islev1.PruneCachesRequest{}))
			return err
		},
		"BuildService/Missing": func() error {
			_, err := c.Images.Missing(ctx, connect.NewRequest(&islev1.MissingRequest{}))
			return err
		},
		"BuildService/Put": func() error {
			s := c.Images.Put(ctx)
			s.Send(&islev1.PutRequest{Digest: string(isle.DigestOf(nil))})
			_, err := s.CloseAndReceive()
			return err
		},
		"BuildService/Export": func() error {
			s, err := c.Images.Export(ctx, connect.NewRequest(&islev1.ExportRequest{Lock: (&spec.Lock{Version: spec.LockVersion}).Encode()}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"BuildService/Import": func() error {
			s := c.Images.Import(ctx)
			s.Send(&islev1.Chunk{Data: []byte("x")})
			_, err := s.CloseAndReceive()
			return err
		},
		"BuildService/ExportCache": func() error {
			s, err := c.Images.ExportCache(ctx, connect.NewRequest(&islev1.ExportCacheRequest{}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"BuildService/ImportCache": func() error {
			s := c.Images.ImportCache(ctx)
			s.Send(&islev1.Chunk{Data: []byte("x")})
			_, err := s.CloseAndReceive()
			return err
		},
		"ServerService/Info": func() error {
			_, err := c.Server.Info(ctx, connect.NewRequest(&islev1.InfoRequest{}))
			return err
		},
		"ServerService/Doctor": func() error {
			_, err := c.Server.Doctor(ctx, connect.NewRequest(&islev1.DoctorRequest{}))
			return err
		},
		"ServerService/Collect": func() error {
			_, err := c.Server.Collect(ctx, connect.NewRequest(&islev1.CollectRequest{}))
			return err
		},
		"ServerService/Checkpoint": func() error {
			_, err := c.Server.Checkpoint(ctx, connect.NewRequest(&islev1.CheckpointRequest{}))
			return err
		},
		"ServerService/Audit": func() error {
			s, err := c.Server.Audit(ctx, connect.NewRequest(&islev1.AuditRequest{}))
			if err != nil {
				return err
			}
			return drain(s.Receive, s.Err)
		},
		"ServerService/Stop": func() error {
			_, err := c.Server.Stop(ctx, connect.NewRequest(&islev1.StopRequest{}))
			return err
		},
		"PolicyService/Show": func() error {
			_, err := c.Policy.Show(ctx, connect.NewRequest(&islev1.ShowRequest{}))
			return err
		},
		"PolicyService/Apply": func() error {
			_, err := c.Policy.Apply(ctx, connect.NewRequest(&islev1.ApplyRequest{Body: []byte(policy.Default)}))
			return err
		},
		"PolicyService/Explain": func() error {
			_, err := c.Policy.Explain(ctx, connect.NewRequest(&islev1.ExplainRequest{Actor: "human:a", Action: "audit:read", Resource: "audit:log"}))
			return err
		},
		"ConnectionService/ListConnections": func() error {
			_, err := c.Connections.ListConnections(ctx, connect.NewRequest(&islev1.ListConnectionsRequest{}))
			return err
		},
		"ConnectionService/GetConnection": func() error {
			_, err := c.Connections.GetConnection(ctx, connect.NewRequest(&islev1.GetConnectionRequest{Connection: "orders-db"}))
			return err
		},
		"ConnectionService/Connect": func() error {
			s := c.Connections.Connect(ctx)
			s.Send(&islev1.ConnectInput{Input: &islev1.ConnectInput_Start{Start: &islev1.ConnectStart{Connection: "orders-db"}}})
			s.CloseRequest()
			_, err := s.Receive()
			return err
		},
		"PolicyService/Roles": func() error {
			_, err := c.Policy.Roles(ctx, connect.NewRequest(&islev1.RolesRequest{}))
			return err
		},
	}
}

// procedures are the names of every call in the API's definition.
func procedures() []string {
	var out []string
	for _, file := range []protoreflect.FileDescriptor{islev1.File_isle_v1_environment_proto, islev1.File_isle_v1_build_proto, islev1.File_isle_v1_server_proto, islev1.File_isle_v1_policy_proto, islev1.File_isle_v1_connection_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				out = append(out, string(service.Name())+"/"+string(service.Methods().Get(j).Name()))
			}
		}
	}
	return out
}

func TestEveryCallIsAuthorizedBeforeItReachesAnything(t *testing.T) {
	r := &rooms{}
	asked := make(chan isle.Action, 100)
	socket := serve(t, r, &decider{newPolicy(t), func(q policy.Query) policy.Answer {
		if q.Actor.Name != Root {
			t.Errorf("the actor is %v, not root", q.Actor)
		}
		asked <- q.Action
		return policy.Answer{Decision: isle.Deny, Rule: "nobody may do anything"}
	}})
	c := NewClient(socket)
	defer c.Close()
	all := calls(t.Context(), c)
	names := procedures()
	if len(names) < 20 {
		t.Fatalf("found only %d calls: the walk is broken", len(names))
	}
	for _, name := range names {
		call, ok := all[name]
		if !ok {
			t.Errorf("%s is not tried here: add it", name)
			continue
		}
		err := call()
		if isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "nobody may do anything") {
			t.Errorf("%s answers %v where it must be refused", name, err)
		}
		select {
		case <-asked:
		default:
			t.Errorf("%s asked nobody", name)
		}
	}
	// The guard itself looks up which project an environment is of, and which there are.
	r.reached = slices.DeleteFunc(r.reached, func(s string) bool { return s == "Get" || s == "List" })
	if len(r.reached) > 0 {
		t.Errorf("refused calls reached %v", r.reached)
	}
	if len(r.entries) != len(names) {
		t.Errorf("%d refusals left %d audit entries", len(names), len(r.entries))
	}
	for _, e := range r.entries {
		if e.Decision != isle.Deny || e.Kind != audit.Event || e.Result != string(isle.Refused) {
			t.Errorf("a refusal is recorded as %+v", e)
		}
	}
}

func TestUsersHaveTheNamesOfTheMachine(t *testing.T) {
	if name := userName(0); name != Root {
		t.Errorf("uid 0 is %q", name)
	}
	if name := userName(4_000_000_000); name != "uid:4000000000" {
		t.Errorf("an unknown uid is %q", name)
	}
}

func TestAConnectionThatNobodyVouchesForIsRefused(t *testing.T) {
	r := &rooms{envs: map[isle.Ref]environment.Environment{}}
	h := New(Config{Environments: r, Builder: r, Blobs: r, Audit: r, Signer: signer(t), Host: r, Policy: newPolicy(t), Log: slog.New(slog.DiscardHandler)})
	srv := &http.Server{Handler: h} // without ConnContext, and over TCP
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	res, err := http.Post("http://"+l.Addr().String()+"/isle.v1.EnvironmentService/List", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden || r.seen("List") {
		t.Errorf("status %d, reached %v", res.StatusCode, r.reached)
	}
}

func TestPlainJSONWorks(t *testing.T) {
	socket := serve(t, &rooms{}, nil)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	res, err := client.Post("http://isle/isle.v1.EnvironmentService/List", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(b), `"name":"shop"`) {
		t.Errorf("got %s, %v", b, err)
	}
	res, err = client.Post("http://isle/isle.v1.EnvironmentService/Get", "application/json", strings.NewReader(`{"environment":"shop"}`))
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound || !strings.Contains(string(b), "there is no environment shop") || !strings.Contains(string(b), "isle ls") {
		t.Errorf("got %d %s", res.StatusCode, b)
	}
}

func TestAnErrorCrossesTheWireUnchanged(t *testing.T) {
	for _, code := range []isle.Code{isle.Invalid, isle.NotFound, isle.Conflict, isle.Refused, isle.Unavailable, isle.Exhausted, isle.Failed, isle.Internal} {
		want := isle.Errorf(code, "it is %s", "so").WithHint("do this")
		r := &rooms{up: func(context.Context, environment.UpRequest) (environment.UpResult, error) {
			return environment.UpResult{}, want
		}}
		c := NewClient(serve(t, r, nil))
		err := calls(t.Context(), c)["EnvironmentService/Up"]()
		c.Close()
		var got *isle.Error
		if !errors.As(err, &got) || got.Code != want.Code || got.Message != want.Message || got.Hint != want.Hint {
			t.Errorf("%s came back as %#v", code, err)
		}
	}
}

func TestFlattenKeepsEveryWordOnce(t *testing.T) {
	inner := isle.Errorf(isle.NotFound, "no such package").WithHint("see the list")
	got := Flatten(isle.Errorf(isle.Failed, "web cannot be built: %w", inner))
	if got.Code != isle.Failed || got.Message != "web cannot be built: no such package" || got.Hint != "see the list" {
		t.Errorf("got %+v", got)
	}
	if got := Flatten(io.ErrUnexpectedEOF); got.Code != isle.Internal || got.Message != "unexpected EOF" {
		t.Errorf("got %+v", got)
	}
	if Flatten(nil) != nil {
		t.Error("nothing became an error")
	}
}

func TestABuildEndsWhenItsClientIsGone(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	r := &rooms{build: func(ctx context.Context, p build.Progress) (build.Result, error) {
		p(build.Event{Step: "packages", State: "start"})
		close(began)
		<-ctx.Done()
		ended <- ctx.Err()
		return build.Result{}, ctx.Err()
	}}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- calls(ctx, c)["EnvironmentService/Up"]() }()
	<-began
	cancel()
	<-ended
	if err := <-done; err == nil {
		t.Error("the call succeeded")
	}
	if r.seen("Up") {
		t.Error("it was launched all the same")
	}
}

func TestOnlyABuildThatDoesSomethingIsRecorded(t *testing.T) {
	r := &rooms{}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	if err := calls(t.Context(), c)["BuildService/Build"](); err != nil {
		t.Fatal(err)
	}
	if len(r.entries) != 0 {
		t.Errorf("a build with nothing to do wrote %v", r.entries)
	}
	r.build = func(_ context.Context, p build.Progress) (build.Result, error) {
		p(build.Event{Step: "packages", State: "start"})
		if len(r.entries) != 1 || r.entries[0].Kind != audit.Intent {
			t.Errorf("work began with %v recorded", r.entries)
		}
		return build.Result{}, isle.Errorf(isle.Failed, "it broke")
	}
	if err := calls(t.Context(), c)["BuildService/Build"](); isle.CodeOf(err) != isle.Failed {
		t.Errorf("got %v", err)
	}
	if len(r.entries) != 2 || r.entries[1].Kind != audit.Outcome || r.entries[1].Result != "failed" || r.entries[1].Link != r.entries[0].ID {
		t.Errorf("recorded %+v", r.entries)
	}
}

func TestAOneShotEnvironmentEndsWithItsCall(t *testing.T) {
	r := &rooms{}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Environments.Up(ctx, connect.NewRequest(&islev1.UpRequest{Source: source(), Name: "once", OneShot: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() || s.Msg().GetResult() == nil {
		t.Fatalf("no result: %v", s.Err())
	}
	if r.seen("Down") {
		t.Fatal("it ended before its call")
	}
	cancel()
	for !r.seen("Down") {
		time.Sleep(time.Millisecond)
	}
}

func TestAOneShotEnvironmentNeverTakesANameThatIsThere(t *testing.T) {
	ref := isle.Ref{Name: "shop", Stage: "testing"}
	r := &rooms{envs: map[isle.Ref]environment.Environment{ref: {Ref: ref}}}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	s, err := c.Environments.Up(t.Context(), connect.NewRequest(&islev1.UpRequest{Source: source(), Name: "shop", OneShot: true}))
	if err == nil {
		for s.Receive() {
		}
		err = s.Err()
	}
	if isle.CodeOf(err) != isle.Conflict || r.seen("Up") || r.seen("Down") {
		t.Errorf("got %v, reached %v", err, r.reached)
	}
}

func TestADerivedNameThatIsTakenGetsASuffix(t *testing.T) {
	ref := isle.Ref{Name: "a-b-c", Stage: "testing"}
	r := &rooms{envs: map[isle.Ref]environment.Environment{ref: {Ref: ref, Project: "a", Branch: "b-c"}}}
	s := &environments{Config{Environments: r}}
	same, err := s.refOf(t.Context(), &islev1.UpRequest{Name: "a-b-c", Branch: "b-c", DerivedName: true}, "a")
	if err != nil || same != ref {
		t.Errorf("the owner of the name got %v, %v", same, err)
	}
	other, err := s.refOf(t.Context(), &islev1.UpRequest{Name: "a-b-c", Branch: "c", DerivedName: true}, "a-b")
	if err != nil || other == ref || !strings.HasPrefix(other.Name, "a-b-c-") || !isle.ValidName(other.Name) {
		t.Errorf("another project got %v, %v", other, err)
	}
	r.envs[other] = environment.Environment{Ref: other, Project: "a-b", Branch: "c"}
	delete(r.envs, ref)
	again, err := s.refOf(t.Context(), &islev1.UpRequest{Name: "a-b-c", Branch: "c", DerivedName: true}, "a-b")
	if err != nil || again != other {
		t.Errorf("its next call got %v, %v", again, err)
	}
	plain, err := s.refOf(t.Context(), &islev1.UpRequest{Name: "a-b-c", Branch: "x"}, "a-b")
	if err != nil || plain != ref {
		t.Errorf("a name that was said got %v, %v", plain, err)
	}
}

func TestExecCarriesInputSignalsOutputAndCode(t *testing.T) {
	p := newProcess()
	c := NewClient(serve(t, &rooms{process: endingProcess{p}}, nil))
	defer c.Close()
	s := c.Environments.Exec(t.Context())
	send := func(m *islev1.ExecInput) {
		t.Helper()
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "shop", Command: []string{"cat"}}}})
	send(&islev1.ExecInput{Input: &islev1.ExecInput_Stdin{Stdin: []byte("hello")}})
	m, err := s.Receive()
	if err != nil || string(m.GetStdout()) != "hello" {
		t.Fatalf("got %v, %v", m, err)
	}
	send(&islev1.ExecInput{Input: &islev1.ExecInput_Signal{Signal: "SIGINT"}})
	if m, err = s.Receive(); err != nil || string(m.GetStderr()) != "SIGINT" {
		t.Fatalf("got %v, %v", m, err)
	}
	send(&islev1.ExecInput{Input: &islev1.ExecInput_StdinEnd{StdinEnd: true}})
	if m, err = s.Receive(); err != nil || m.GetExit().GetCode() != 7 {
		t.Fatalf("got %v, %v", m, err)
	}
	<-p.closed
}

func TestAnExecIsKilledWhenItsClientIsGone(t *testing.T) {
	p := newProcess()
	c := NewClient(serve(t, &rooms{process: p}, nil))
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s := c.Environments.Exec(ctx)
	s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "shop", Command: []string{"sleep"}}}})
	s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Stdin{Stdin: []byte("x")}})
	if _, err := s.Receive(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Receive(); err == nil {
		t.Error("the call goes on")
	}
	<-p.closed
}

func TestPutStoresEachBlobByItself(t *testing.T) {
	r := &rooms{}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	s := c.Images.Put(t.Context())
	d := string(isle.DigestOf(nil))
	for _, m := range []*islev1.PutRequest{{Digest: d, Data: []byte("a")}, {Data: []byte("b")}, {Digest: d}, {Digest: d, Data: []byte("c")}} {
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	res, err := s.CloseAndReceive()
	if err != nil || res.Msg.GetBlobs() != 3 || string(r.got) != "|ab||c" {
		t.Errorf("got %v blobs, %q, %v", res.Msg.GetBlobs(), r.got, err)
	}
}

func TestInputThatIsTooMuchOrWrongIsRefused(t *testing.T) {
	r := &rooms{process: newProcess()}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	up := func(s *islev1.Source) error {
		st, err := c.Environments.Up(t.Context(), connect.NewRequest(&islev1.UpRequest{Source: s}))
		if err != nil {
			return err
		}
		for st.Receive() {
		}
		return st.Err()
	}
	exec := func(e *islev1.ExecStart) error {
		s := c.Environments.Exec(t.Context())
		s.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: e}})
		_, err := s.Receive()
		return err
	}
	for name, err := range map[string]error{
		"no file":         up(&islev1.Source{}),
		"a broken file":   up(&islev1.Source{Spec: []byte("name: [")}),
		"a huge file":     up(&islev1.Source{Spec: make([]byte, spec.MaxFileSize+1)}),
		"a wrong digest":  up(&islev1.Source{Spec: []byte(oneService), Trees: []*islev1.CopiedTree{{Digest: "sha256:../../x"}}}),
		"a broken lock":   up(&islev1.Source{Spec: []byte(oneService), Lock: []byte("{")}),
		"no command":      exec(&islev1.ExecStart{Environment: "shop"}),
		"no environment":  exec(&islev1.ExecStart{Command: []string{"x"}}),
		"a NUL":           exec(&islev1.ExecStart{Environment: "shop", Command: []string{"a\x00b"}}),
		"a variable":      exec(&islev1.ExecStart{Environment: "shop", Command: []string{"a"}, Env: map[string]string{"a=b": "c"}}),
		"a long argument": exec(&islev1.ExecStart{Environment: "shop", Command: []string{strings.Repeat("a", maxCommand+1)}}),
	} {
		if isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if r.reached = slices.DeleteFunc(r.reached, func(s string) bool { return s == "Get" }); len(r.reached) > 0 {
		t.Errorf("reached %v", r.reached)
	}
}

func TestAPanicIsAnErrorOfThatCallAlone(t *testing.T) {
	r := &rooms{up: func(context.Context, environment.UpRequest) (environment.UpResult, error) { panic("oh") }}
	c := NewClient(serve(t, r, nil))
	defer c.Close()
	if err := calls(t.Context(), c)["EnvironmentService/Up"](); isle.CodeOf(err) != isle.Internal {
		t.Errorf("got %v", err)
	}
	if err := calls(t.Context(), c)["ServerService/Info"](); err != nil {
		t.Errorf("the next call got %v", err)
	}
}

func TestNoServerIsSaidSo(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none"))
	for _, err := range []error{c.Answers(t.Context()), calls(t.Context(), c)["ServerService/Info"]()} {
		if isle.CodeOf(err) != isle.NotFound || !strings.Contains(err.Error(), "no server answers") {
			t.Errorf("got %v", err)
		}
	}
}

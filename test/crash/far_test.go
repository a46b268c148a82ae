package crash

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
	"isle/test/lab"
)

// A far is a world whose server the test starts itself, and which callers from
// elsewhere reach too, at one address for good.
type far struct {
	*world
	address string
	url     string
	pin     string
	root    *api.Client // by the socket
}

// newFar makes one; its server runs. It has no images yet.
func newFar(t *testing.T) *far {
	t.Helper()
	return startFar(t, newState(t))
}

func startFar(t *testing.T, s *lab.Server) *far {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &far{world: &world{Server: s, dir: t.TempDir(), namespaces: map[uint64]bool{}}, address: l.Addr().String()}
	l.Close()
	f.name = f.group()
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(f.State, "server.log"))
			t.Logf("the end of the server's log:\n%s", log[max(0, len(log)-4000):])
		}
		f.Close()
	})
	f.root = api.NewClient(filepath.Join(f.State, "isle.sock"))
	f.start(t)
	return f
}

// start starts the server, and waits until it answers.
func (f *far) start(t *testing.T, flags ...string) {
	t.Helper()
	if err := f.try(flags...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server answers", func() error {
		info, err := f.root.Server.Info(context.Background(), connect.NewRequest(&islev1.InfoRequest{}))
		if err == nil {
			f.url, f.pin = info.Msg.GetUrl(), info.Msg.GetPin()
		}
		return err
	})
}

// try starts the server, and waits for nothing.
func (f *far) try(flags ...string) error {
	args := append([]string{"server", "--state", f.State, "--listen", f.address, "--names", "off", "--log", filepath.Join(f.State, "server.log")}, flags...)
	cmd := exec.Command(filepath.Join(f.Bin, "isle"), args...)
	cmd.Env = append(append(os.Environ(), lab.Environ(f.State)...), "ISLE_FAULT=@"+f.faultFile())
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait() // ends with the server, which Close ends
	return nil
}

// refuses starts the server where it is to refuse to, and returns what it says.
func (f *far) refuses(t *testing.T, flags ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(f.Bin, "isle"), append([]string{"server", "--state", f.State, "--names", "off"}, flags...)...)
	cmd.Env = append(os.Environ(), lab.Environ(f.State)...)
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("it serves: %s", out)
	}
	return string(out)
}

// as is a client from elsewhere with a credential.
func (f *far) as(t *testing.T, token string) *api.Client {
	t.Helper()
	c, err := api.NewRemoteClient(api.Remote{URL: f.url, Pin: f.pin, Token: func() (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// counts says whether a credential proves somebody.
func (f *far) counts(t *testing.T, token string) error {
	t.Helper()
	c := f.as(t, token)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := c.Identities.WhoAmI(ctx, connect.NewRequest(&islev1.WhoAmIRequest{}))
	return err
}

// machine makes a machine.
func (f *far) machine(ctx context.Context, name string, public []byte, roles ...string) (*islev1.CreateIdentityResponse, error) {
	res, err := f.root.Identities.CreateIdentity(ctx, connect.NewRequest(&islev1.CreateIdentityRequest{
		Name: name, Purpose: "a test", Expires: timestamppb.New(time.Now().Add(24 * time.Hour)), Roles: roles, PublicKey: public,
	}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (f *far) mustMachine(t *testing.T, name string, public []byte, roles ...string) *islev1.CreateIdentityResponse {
	t.Helper()
	m, err := f.machine(t.Context(), name, public, roles...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// verified sees that the log and all that it vouches for is whole; a server may run.
func (f *far) verified(t *testing.T) {
	t.Helper()
	if out, err := f.isle("audit", "verify"); err != nil {
		t.Errorf("the log does not verify: %v\n%s", err, out)
	}
}

func (f *far) apply(ctx context.Context, document, body string) (*islev1.ApplyResponse, error) {
	res, err := f.root.Policy.Apply(ctx, connect.NewRequest(&islev1.ApplyRequest{Document: document, Body: []byte(body)}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (f *far) mustApply(t *testing.T, document, format string, args ...any) *islev1.ApplyResponse {
	t.Helper()
	r, err := f.apply(t.Context(), document, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

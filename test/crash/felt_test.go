package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	"isle/internal/api"
	islev1 "isle/internal/api/isle/v1"
)

// ticking is an environment with something to enter, to read and to reach.
const ticking = `name: ticking
services:
  one:
    packages: [busybox]
    command: |
      busybox nc -ll -p 7 -e cat &
      while true; do echo tick; busybox sleep 0.2; done
    healthcheck: {tcp: 7, interval: 100ms}
`

func (f *far) upTicking(t *testing.T) {
	t.Helper()
	dir := filepath.Join(f.dir, "ticking")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(ticking), 0o600); err != nil {
		t.Fatal(err)
	}
	f.must(t, "up", dir)
}

// open opens what lasts, one of each kind, and returns where its end is told,
// once something has come over it.
func open(ctx context.Context, c *api.Client) (ends map[string]<-chan error, err error) {
	ends = map[string]<-chan error{}
	follow := func(what string, first func() error, next func() error) error {
		if err := first(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		ended := make(chan error, 1)
		ends[what] = ended
		go func() { // ends with ctx
			for {
				if err := next(); err != nil {
					ended <- err
					return
				}
			}
		}()
		return nil
	}
	exec := c.Environments.Exec(ctx)
	if err := exec.Send(&islev1.ExecInput{Input: &islev1.ExecInput_Start{Start: &islev1.ExecStart{Environment: "ticking", Command: []string{"sh", "-c", "while true; do echo x; busybox sleep 0.1; done"}}}}); err != nil && !errors.Is(err, io.EOF) { // then Receive says why
		return nil, err
	}
	received := func() error { _, err := exec.Receive(); return err }
	if err := follow("exec", received, received); err != nil {
		return nil, err
	}
	port := c.Environments.PortForward(ctx)
	if err := port.Send(&islev1.PortInput{Input: &islev1.PortInput_Start{Start: &islev1.PortStart{Environment: "ticking", Port: 7}}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := port.Send(&islev1.PortInput{Input: &islev1.PortInput_Data{Data: []byte("x")}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	reached := func() error { _, err := port.Receive(); return err }
	if err := follow("port-forward", reached, reached); err != nil {
		return nil, err
	}
	logs, err := c.Environments.Logs(ctx, connect.NewRequest(&islev1.LogsRequest{Environment: "ticking", Follow: true}))
	if err != nil {
		return nil, err
	}
	told := func() error {
		if logs.Receive() {
			return nil
		}
		return logs.Err()
	}
	if err := follow("logs -f", told, told); err != nil {
		return nil, err
	}
	audit, err := c.Server.Audit(ctx, connect.NewRequest(&islev1.AuditRequest{Follow: true, Tail: 1}))
	if err != nil {
		return nil, err
	}
	followed := func() error {
		if audit.Receive() {
			return nil
		}
		return audit.Err()
	}
	if err := follow("audit -f", followed, followed); err != nil {
		return nil, err
	}
	asked := func() error {
		_, err := c.Environments.Get(ctx, connect.NewRequest(&islev1.GetRequest{Environment: "ticking"}))
		time.Sleep(time.Millisecond)
		return err
	}
	return ends, follow("new requests", asked, asked)
}

// An ending is a way in which somebody may do no longer what they could.
type ending struct {
	name string
	// begin makes a credential that may do all that open does, and returns what
	// ends that.
	begin func(t *testing.T, f *far, name string) (credential string, end func(ctx context.Context) error)
}

var mayAll = []string{"developer", "auditor"}

func endings() []ending {
	revoke := func(f *far, name string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := f.root.Identities.RevokeIdentity(ctx, connect.NewRequest(&islev1.RevokeIdentityRequest{Name: name}))
			return err
		}
	}
	return []ending{
		{"identity revoked", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			return f.mustMachine(t, name, nil, mayAll...).GetSecret(), revoke(f, name)
		}},
		{"key revoked", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			m := f.mustMachine(t, name, nil, mayAll...)
			return m.GetSecret(), func(ctx context.Context) error {
				_, err := f.root.Identities.RevokeKey(ctx, connect.NewRequest(&islev1.RevokeKeyRequest{Id: m.GetIdentity().GetKeys()[0].GetId()}))
				return err
			}
		}},
		{"key rotated without overlap", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			return f.mustMachine(t, name, nil, mayAll...).GetSecret(), func(ctx context.Context) error {
				_, err := f.root.Identities.RotateKey(ctx, connect.NewRequest(&islev1.RotateKeyRequest{Name: name, Overlap: durationpb.New(0)}))
				return err
			}
		}},
		{"identity of an access token revoked", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			m := f.mustMachine(t, name, nil, mayAll...)
			token, _, err := f.token(f.asks(), url.Values{"client_id": {name}, "client_secret": {m.GetSecret()}})
			if err != nil {
				t.Fatal(err)
			}
			return token, revoke(f, name)
		}},
		{"personal token revoked", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			res, err := f.root.Identities.CreateToken(t.Context(), connect.NewRequest(&islev1.CreateTokenRequest{Purpose: name, Stage: "testing", Expires: timestamppb.New(time.Now().Add(time.Hour))}))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg.GetSecret(), func(ctx context.Context) error {
				_, err := f.root.Identities.RevokeToken(ctx, connect.NewRequest(&islev1.RevokeTokenRequest{Id: res.Msg.GetKey().GetId()}))
				return err
			}
		}},
		{"grant taken", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			m := f.mustMachine(t, name, nil)
			f.mustApply(t, "felt", "bindings: [{role: developer, subjects: [\"machine:%[1]s\"], stages: [testing]}, {role: auditor, subjects: [\"machine:%[1]s\"]}]\n", name)
			return m.GetSecret(), func(ctx context.Context) error { _, err := f.apply(ctx, "felt", "{}\n"); return err }
		}},
		{"role changed", func(t *testing.T, f *far, name string) (string, func(context.Context) error) {
			m := f.mustMachine(t, name, nil, "auditor")
			role := "roles: {looker: {actions: [%s], resources: [\"environment:ticking@testing\", \"audit:log\"]}}\nbindings: [{role: looker, subjects: [\"machine:" + name + "\"], stages: [testing]}, {role: looker, subjects: [\"machine:" + name + "\"]}]\n"
			f.mustApply(t, "felt", role, "environment:exec, environment:logs, environment:port-forward, environment:read, audit:read")
			return m.GetSecret(), func(ctx context.Context) error {
				if _, err := f.apply(ctx, "machines", "{}\n"); err != nil {
					return err
				}
				_, err := f.apply(ctx, "felt", fmt.Sprintf(role, "environment:extend"))
				return err
			}
		}},
	}
}

// What was revoked is over within a second for all that is open and for each new
// request, while the server has other things to do.
func TestARevocationIsFeltByAllThatIsOpen(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	f.upTicking(t)
	s := newSigner(t, "signer")
	f.mustMachine(t, s.name, s.jwk)
	ci := f.mustMachine(t, "ci", nil).GetSecret()
	for _, loaded := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		var load *sync.WaitGroup
		if loaded {
			load = (&told{lines: map[string]int{}, secrets: map[string]string{}}).load(ctx, f, 0, ci, s)
		}
		for i, e := range endings() {
			name := fmt.Sprintf("felt-%v-%d", loaded, i)
			credential, end := e.begin(t, f, name)
			c := f.as(t, credential)
			streams, stop := context.WithCancel(t.Context())
			ends, err := open(streams, c)
			if err != nil {
				t.Fatalf("%s: %v", e.name, err)
			}
			begun := time.Now()
			if err := end(t.Context()); err != nil {
				t.Fatal(err)
			}
			answered := time.Now()
			report := fmt.Sprintf("%s, under load %v: answered after %v, and from then:", e.name, loaded, answered.Sub(begun).Round(time.Millisecond))
			calls := 0
			for what, ended := range ends {
				err, ok := f.felt(t, ended, &calls)
				if !ok {
					t.Errorf("%s: %s goes on", e.name, what)
					continue
				}
				after := time.Since(answered)
				report += fmt.Sprintf(" %s %v", what, after.Round(time.Millisecond))
				if isle.CodeOf(err) != isle.Refused {
					t.Errorf("%s: %s ended with %v", e.name, what, err)
				}
				if after > time.Second && calls > calledInASecond {
					t.Errorf("%s: %s went on for %v and %d calls", e.name, what, after, calls)
				}
			}
			t.Log(report)
			stop()
			c.Close()
		}
		cancel()
		if load != nil {
			load.Wait()
		}
	}
	f.must(t, "down", "--all", "--volumes")
	f.must(t, "server", "stop")
}

// calledInASecond is more than a machine of two processors answers of felt's
// calls within a second, one after the other. On a machine that has no time for
// anything a second is as long as that many calls.
const calledInASecond = 10000

// felt waits until something ended, and counts the calls that were answered
// meanwhile. It is not ok if that does not come.
func (f *far) felt(t *testing.T, ended <-chan error, calls *int) (err error, ok bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); *calls++ {
		select {
		case err := <-ended:
			return err, true
		default:
		}
		if _, err := f.root.Server.Info(t.Context(), connect.NewRequest(&islev1.InfoRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	return nil, false
}

// A server that dies as soon as it has answered starts with what it answered.
func TestARevocationIsFeltRightAfterACrash(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	f.upTicking(t)
	for i, e := range endings() {
		credential, end := e.begin(t, f, fmt.Sprintf("crash-%d", i))
		c := f.as(t, credential)
		streams, stop := context.WithCancel(t.Context())
		ends, err := open(streams, c)
		if err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.kill(t)
		for what, ended := range ends {
			select {
			case <-ended:
			case <-time.After(patience):
				t.Errorf("%s: %s goes on without a server", e.name, what)
			}
		}
		f.start(t)
		again := f.as(t, credential)
		if ends, err := open(streams, again); isle.CodeOf(err) != isle.Refused {
			t.Errorf("%s: after a crash it counts: %v, %v", e.name, ends, err)
		}
		f.verified(t)
		stop()
		c.Close()
	}
	f.must(t, "down", "--all", "--volumes")
	f.must(t, "server", "stop")
}

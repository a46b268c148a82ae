package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"isle"
)

func TestTwoStateFoldersHaveTwoSockets(t *testing.T) {
	if got := SocketPath(DefaultState); got != "/run/isle/isle.sock" {
		t.Errorf("the installed server's is %s", got)
	}
	if got := SocketPath("/srv/isle/"); got != "/srv/isle/isle.sock" {
		t.Errorf("another's is %s", got)
	}
	long := "/srv/" + strings.Repeat("long", 40)
	a, b := SocketPath(long+"a"), SocketPath(long+"b")
	if a == b || len(a) > 100 || filepath.Dir(a) != runFolder {
		t.Errorf("long ones are %s and %s", a, b)
	}
}

func TestOneServerRunsOnAStateFolder(t *testing.T) {
	cfg := Config{State: filepath.Join(t.TempDir(), "state")}
	first, second := &Server{cfg: cfg}, &Server{cfg: cfg}
	if err := first.takeState(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(cfg.State)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v, %v", st.Mode(), err)
	}
	if err := second.takeState(); isle.CodeOf(err) != isle.Conflict {
		t.Errorf("a second server got %v", err)
	}
	first.lock.Close()
	if err := second.takeState(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	second.lock.Close()
}

func TestAStateFolderThatIsAnotherUsersIsRefused(t *testing.T) {
	cfg := Config{State: filepath.Join(t.TempDir(), "state")}
	if err := os.Mkdir(cfg.State, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(cfg.State, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if err := (&Server{cfg: cfg}).takeState(); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "user 1000") {
		t.Errorf("it was taken: %v", err)
	}
	if entries, _ := os.ReadDir(cfg.State); len(entries) > 0 {
		t.Errorf("something was written there: %v", entries)
	}
}

func TestAListenerThatIsHandedOverRefusesNoConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := &Handover{inherited: map[string]*os.File{}, held: map[string]fileListener{}}
	open := func() (net.Listener, error) { return net.Listen("unix", path) }
	l, err := old.Listen("api", open)
	if err != nil {
		t.Fatal(err)
	}
	old.keep()
	l.Close()
	variable, err := old.pass()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path) // between the two programs
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	name, value, _ := strings.Cut(variable, "=")
	t.Setenv(name, value)
	next := adopt()
	if os.Getenv(name) != "" {
		t.Error("the variable is left for children")
	}
	taken, err := next.Listen("api", func() (net.Listener, error) {
		t.Error("it is opened anew")
		return open()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	got, err := taken.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	io.WriteString(conn, "hello\n")
	if line, err := bufio.NewReader(got).ReadString('\n'); line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the old listener took the socket away: %v", err)
	}
}

func TestWhatWasAskedForOnceIsNotDoneAgainAtAReload(t *testing.T) {
	args := []string{"isle", "server", "--state", "/srv/isle", "--default-policy", "--accept-rollback=true", "--new-key", "--listen", ":7443"}
	want := []string{"isle", "server", "--state", "/srv/isle", "--listen", ":7443"}
	if got := lasting(args); !slices.Equal(got, want) {
		t.Errorf("a successor gets %q", got)
	}
	if len(args) != 9 || args[4] != "--default-policy" {
		t.Errorf("and these were changed: %q", args)
	}
}

func TestWhatASuccessorDoesNotWantIsClosed(t *testing.T) {
	old := &Handover{inherited: map[string]*os.File{}, held: map[string]fileListener{}}
	l, err := old.Listen("unwanted", func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	old.keep()
	variable, err := old.pass()
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	name, value, _ := strings.Cut(variable, "=")
	t.Setenv(name, value)
	adopt().discard()
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	bounded := newLimit(inner, 2)
	srv := &http.Server{Handler: http.NotFoundHandler(), ConnState: bounded.state, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(bounded) }()
	defer func() { srv.Close(); <-done }()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	// Many one after the other, over both protocols: each makes room for the next.
	for i := range 20 {
		tr := &http.Transport{DialContext: dial, Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(i%2 == 0)
		tr.Protocols.SetUnencryptedHTTP2(i%2 == 1)
		res, err := (&http.Client{Transport: tr}).Get("http://isle/")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		res.Body.Close()
		tr.CloseIdleConnections()
	}
}

func TestTheLogIsBounded(t *testing.T) {
	saved, err := unix.Dup(2) // the log becomes standard error
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		unix.Dup3(saved, 2, 0)
		unix.Close(saved)
	}()
	name := filepath.Join(t.TempDir(), "log")
	l, err := openLog(name)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 1<<20) + "\n")
	for range 30 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	l.file.Close()
	for _, f := range []string{name, name + ".1"} {
		st, err := os.Stat(f)
		if err != nil || st.Size() > maxLog {
			t.Errorf("%s: %v bytes, %v", f, st.Size(), err)
		}
	}
	entries, _ := os.ReadDir(filepath.Dir(name))
	if len(entries) != 2 {
		t.Errorf("there are %v", entries)
	}
}

func TestTheDoctorNamesARemedyForWhatIsMissing(t *testing.T) {
	remedies := map[string]string{}
	for _, c := range Doctor(Config{State: filepath.Join(t.TempDir(), "not", "there"), Runtime: "no-such-runtime"}) {
		if c.State != "ok" {
			remedies[c.Name] = c.Remedy
		}
	}
	for name, want := range map[string]string{"OCI runtime": "apt-get install crun"} {
		if remedies[name] != want {
			t.Errorf("%s: %q, not %q", name, remedies[name], want)
		}
	}
}

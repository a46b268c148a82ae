package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"isle/test/lab"
)

// member makes a group and a user in it, who go with the script, and a server of
// its own that lets the group connect: MEMBER, GROUP and SOCKET name them, and
// PROGRAM is an isle that anybody may run.
func member(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: member")
	}
	dir, err := os.MkdirTemp("", "isle-e2e-member-")
	ts.Check(err)
	ts.Check(os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "isle")
	ts.Check(lab.CopyFile(filepath.Join(bin, "isle"), program))
	ts.Check(os.Chmod(program, 0o755))
	_, own, _ := strings.Cut(filepath.Base(dir), "member-") // several scripts may have one
	user, group := "isle-u"+own, "isle-g"+own
	state := filepath.Join(dir, "state")
	ts.Check(os.Mkdir(state, 0o700))
	lab.SeedBuilt(built, state)
	socket := filepath.Join(dir, "isle.sock")
	system := func(argv ...string) {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			ts.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	var server *exec.Cmd
	ts.Defer(func() {
		for _, argv := range [][]string{
			{program, "--server", socket, "down", "--all", "--volumes"}, {program, "--server", socket, "server", "stop"},
			{"userdel", user}, {"groupdel", group},
		} {
			exec.Command(argv[0], argv[1:]...).Run() // some of it may be gone
		}
		if server != nil {
			server.Process.Kill() // it has ended, unless stop failed
			server.Wait()
		}
		os.RemoveAll(dir)
	})
	system("groupadd", group)
	system("useradd", "--no-create-home", "--shell", "/bin/sh", "--groups", group, user)
	server = exec.Command(filepath.Join(bin, "isle"), "server", "--state", state, "--server", socket, "--group", group, "--log", filepath.Join(dir, "log"))
	ts.Check(server.Start())
	ts.Setenv("MEMBER", user)
	ts.Setenv("GROUP", group)
	ts.Setenv("SOCKET", socket)
	ts.Setenv("PROGRAM", program)
}

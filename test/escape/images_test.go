package escape

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sealedIn checks that a service of an environment is as sealed as any.
func sealedIn(t *testing.T, environment, service string) {
	t.Helper()
	refused(t, environment, attackIn(t, environment, service, "namespaces"), 40, nil)
	refused(t, environment, attackIn(t, environment, service, "handles"), 2, nil)
	got := attackIn(t, environment, service, "inherited")
	if got["root is"] != rootType() || got["isle-init above the working folder"] != "DONE" {
		t.Errorf("%s: %v", environment, got)
	}
}

func TestAnImageFullOfLinksMountsNothingElsewhere(t *testing.T) {
	const volume, refusal, nothing = "volumes: {/srv: {size: 16MiB}}", "a link in its image leads /srv to", "its image has something in place of the folder"
	for name, c := range map[string]struct {
		links      map[string]string
		more, want string
	}{
		"a volume over a link to proc":    {map[string]string{"/srv": "/proc"}, volume, refusal + " /proc"},
		"a volume over a link to root":    {map[string]string{"/srv": "/"}, volume, refusal + " /,"},
		"a volume over a link above root": {map[string]string{"/srv": "../../../../../../../../dev"}, volume, refusal + " /dev"},
		"a volume over a link to etc":     {map[string]string{"/srv": "../../../../../../../../etc"}, volume, "cannot give /srv"},
		"a volume below a link to etc":    {map[string]string{"/opt": "/etc"}, "volumes: {/opt/x/y: {size: 16MiB}}", nothing},
		"a volume over a link to PID 1":   {map[string]string{"/srv": "/proc/1/root"}, volume, nothing},
		"a volume over a link to itself":  {map[string]string{"/srv": "srv"}, volume, nothing},
		"a tmpfs over a link to dev":      {map[string]string{"/srv": "/dev"}, "tmpfs: [/srv]", refusal + " /dev"},
		"a tmpfs over a link above root":  {map[string]string{"/srv": "../../../../../../../../root"}, "tmpfs: [/srv]", ""}, // its own /root
		"a link for isle-init's folder":   {map[string]string{"/isle": "/srv"}, "", ""},
		"links for files that are made":   {map[string]string{"/etc/hosts": "/proc/self/exe", "/etc/resolv.conf": "../../../../etc/passwd", "/etc/hostname": "/dev/null"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			unharmed(t)
			t.Cleanup(func() { server.Isle("down", "trap", "--volumes") })
			var steps []string
			for at, to := range c.links {
				steps = append(steps, fmt.Sprintf("rm -rf %s && ln -s %s %[1]s", at, to))
			}
			file := fmt.Sprintf("name: trap\nservices:\n  it:\n    copy: [{from: attacker, to: /attacker}]\n    run: [%q]\n"+
				"    command: [/attacker, serve, \"8085\", isle-trap]\n    %s\n", strings.Join(steps, " && "), c.more)
			_, err := up(t.TempDir(), file)
			if c.want != "" {
				if !strings.Contains(errorText(err), c.want) {
					t.Errorf("want an error with %q, got %v", c.want, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sealedIn(t, "trap", "it")
		})
	}
}

// What every image has as a folder, none can have as a link.
func TestAnImageHasNoLinkForWhatIsAlwaysMounted(t *testing.T) {
	for _, name := range []string{"proc", "dev", "sys", "tmp", "run"} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "tree"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc", filepath.Join(dir, "tree", name)); err != nil {
			t.Fatal(err)
		}
		file := "name: trap\nservices:\n  it:\n    copy: [{from: tree/, to: /}]\n"
		if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := server.Isle("up", dir); err == nil {
			t.Errorf("/%s is a link: %s", name, out)
			server.Isle("down", "trap", "--volumes")
		}
	}
}

func TestABuildStepIsAsSealedAsAService(t *testing.T) {
	unharmed(t)
	groups := []string{"namespaces", "kernel", "clock", "handles", "netlink", "sockets", "settings", "foreign"}
	var steps []string
	for _, g := range groups {
		steps = append(steps, fmt.Sprintf("/attacker %s > /out-%s", g, g))
	}
	launch(t, "built", fmt.Sprintf("name: built\nservices:\n  it:\n    copy: [{from: attacker, to: /attacker}]\n    run: [%q]\n", strings.Join(steps, " && ")))
	for _, g := range groups {
		out, err := server.Isle("exec", "built", "--", "cat", "/out-"+g)
		if err != nil {
			t.Error(err)
			continue
		}
		got, want := outcomes(out), map[string]string{}
		switch g {
		case "namespaces": // a step is PID 1 itself, and its own
			maps.DeleteFunc(got, func(what, _ string) bool { return strings.Contains(what, "/proc/1/ns") })
			// Its network namespace belongs to its own user namespace, which has no way up.
			want["ioctl NS_GET_USERNS, twice"] = "DONE EPERM EACCES"
		case "netlink":
			delete(got, "links beside lo") // there are none
		case "sockets":
			want["option: bpf"] = "EINVAL EPERM"
		case "settings":
			for what := range got {
				want[what] = absent + " EINVAL"
			}
		case "foreign":
			for what := range got {
				want[what] = got[what]
				if !strings.HasSuffix(got[what], "exit status 3") {
					t.Errorf("%s: %s", what, got[what])
				}
			}
			got, want = map[string]string{}, nil
		}
		refused(t, "build step "+g, got, min(2, len(got)), want)
	}
}

// The image's own shell is a link to the runtime that starts it.
func TestTheRuntimeCannotBeMadeToRunItselfAndBeChanged(t *testing.T) {
	unharmed(t)
	dir := t.TempDir()
	if err := os.Symlink("/proc/self/exe", filepath.Join(dir, "sh")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "trick"), []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"as a shell of a build step": "name: self\nservices:\n  it:\n    copy: [{from: sh, to: /usr/bin/sh}]\n    run: [\"true\"]\n    command: [sleep, \"1000\"]\n",
		"as a command":               "name: self\nservices:\n  it:\n    copy: [{from: sh, to: /self}, {from: trick, to: /trick}]\n    command: [/self, x]\n",
		"as an interpreter":          "name: self\nservices:\n  it:\n    copy: [{from: sh, to: /self}, {from: trick, to: /trick}]\n    command: [/trick]\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { server.Isle("down", "self", "--volumes") })
			if err := os.WriteFile(filepath.Join(dir, "isle.yaml"), []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := server.Isle("up", dir); err == nil {
				t.Errorf("it ran: %s", out)
			}
		})
	}
}

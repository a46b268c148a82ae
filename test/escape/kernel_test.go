package escape

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestNothingInsideChangesWhatIsMounted(t *testing.T) {
	both(t, "mounts", 57, nil)
}

func TestNothingInsideMakesOrEntersNamespaces(t *testing.T) {
	both(t, "namespaces", 40, nil)
}

func TestPID1CannotBeLookedIntoOrChanged(t *testing.T) {
	both(t, "init", 30, map[string]string{
		// Numbers alone: what they are, and to open them, is refused.
		"list /proc/1/fd":        "DONE EACCES EPERM",
		"list /proc/1/task/1/fd": "DONE EACCES EPERM",
		// Only threads of the same process may.
		"write /proc/1/comm": "EINVAL EACCES EPERM",
		// Can't be read by anyone.
		"read /proc/1/clear_refs": "EINVAL EACCES EPERM",
		// The loss is its own: to be ended first, and to be late (with SYS_NICE).
		"write /proc/1/oom_score_adj": "DONE EACCES EPERM",
		"write /proc/1/timerslack_ns": "DONE EACCES EPERM",
	})
}

func TestProcessesCannotLookIntoEachOtherNorBecomeMoreImportant(t *testing.T) {
	both(t, "processes", 19, map[string]string{
		"processes of others in sight": "0",
		"oom_score_adj 0":              "DONE EACCES", // not below the machine's own services
	})
}

func TestNoSettingOfTheMachineCanBeWritten(t *testing.T) {
	other := map[string]string{"sethostname": "EPERM", "setdomainname": "EPERM", "write /proc/self/attr/exec": "EINVAL EACCES EPERM"}
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		got := attack(t, service, "settings")
		want := maps.Clone(other)
		for what := range got {
			if _, ok := want[what]; !ok {
				want[what] = absent
			}
		}
		refused(t, service, got, 35, want)
	}
}

func TestWhatTheKernelKnowsStaysWithTheKernel(t *testing.T) {
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		got := attack(t, service, "secrets")
		want := map[string]string{"addresses in /proc/kallsyms": "none", "entries in /sys": "0"}
		for what := range got {
			if _, ok := want[what]; !ok {
				want[what] = absent + " EMPTY"
			}
			if strings.HasPrefix(what, "syslog ") {
				want[what] = "EPERM"
			}
		}
		// Figures about the machine, and no one's data: docs/security.md says so.
		for _, p := range []string{"iomem", "kallsyms", "modules", "cmdline", "partitions", "diskstats", "config.gz"} {
			want["read /proc/"+p] = absent + " EMPTY DONE"
		}
		refused(t, service, got, 40, want)
	}
}

func TestCallsDeepIntoTheKernelAreRefused(t *testing.T) {
	both(t, "kernel", 35, nil)
}

func TestTheClockCannotBeChanged(t *testing.T) {
	both(t, "clock", 5, nil)
}

func TestCallsPastTheFilterEndTheirCaller(t *testing.T) {
	const ended = "KILLED exit status 3"
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		for what, how := range attack(t, service, "foreign") {
			if how != ended && how != "ENOSYS exit status 3" {
				t.Errorf("%s: %s: %s", service, what, how)
			}
		}
	}
}

func TestNoDeviceCanBeMadeOrOpenedButTheHarmlessOnes(t *testing.T) {
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		got := attack(t, service, "devices")
		harmless := "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
		if sandboxed { // of its own kernel: nodes that cannot be opened, and links to the others
			harmless += " char fuse net"
		}
		for _, name := range strings.Fields(got["what is in /dev"]) {
			if !slices.Contains(strings.Fields(harmless), name) {
				t.Errorf("%s: /dev has %s", service, name)
			}
		}
		delete(got, "what is in /dev")
		refused(t, service, got, 50, map[string]string{
			"open /dev/null":             "DONE",
			"open /dev/ptmx":             "DONE", // of its own
			"open /dev/console":          absent,
			"open /dev/tty":              absent,
			"open /dev/tty0":             absent,
			"open /dev/ttyS0":            absent,
			"take the machine's console": "EPERM EINVAL EACCES",
		})
	}
}

func TestNoFileCanBeOpenedByHandle(t *testing.T) {
	both(t, "handles", 2, nil)
}

func TestControlGroupsAreOutOfReach(t *testing.T) {
	both(t, "cgroups", 5, map[string]string{
		"control groups mounted":                            "0",
		"write /sys/fs/cgroup/cgroup.procs":                 absent,
		"write /sys/fs/cgroup/memory/memory.limit_in_bytes": absent,
		"write /sys/fs/cgroup/release_agent":                absent,
		"write /proc/1/cgroup":                              absent + " EINVAL",
	})
}

// CVE-2019-5736: a container wrote to its runtime's binary.
func TestTheMachinesBinariesCannotBeChangedFromInside(t *testing.T) {
	both(t, "binaries", 15, map[string]string{
		"link /isle/init":            "EXDEV EPERM EROFS",
		"write the runtime's binary": "ENOENT EACCES EPERM",
	})
}

// CVE-2024-21626: a descriptor of the host's was left open to a container.
func TestNoDescriptorOfTheMachineIsInherited(t *testing.T) {
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		out, err := server.Isle("logs", "target", "-s", service)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []map[string]string{outcomes(out), attack(t, service, "inherited")} {
			if got["working folder"] != "/" || !strings.HasPrefix(got["root is"], rootType()) {
				t.Errorf("%s: it stands in %q, of a file system of type %q", service, got["working folder"], got["root is"])
			}
			for what, how := range got {
				switch {
				case strings.HasPrefix(what, "host's "):
					if how != "ENOENT" {
						t.Errorf("%s: %s: %s", service, what, how)
					}
				case strings.HasPrefix(what, "descriptor "):
					if n := strings.TrimPrefix(what, "descriptor "); n != "0" && n != "1" && n != "2" || how != "pipe" && how != "/dev/null" {
						t.Errorf("%s: %s is %s", service, what, how)
					}
				}
			}
		}
		for _, dir := range []string{"/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/cwd", "/proc/1/root", "/proc/self/fd/7/../../../.."} {
			out, err := server.Isle("exec", "target", "-s", service, "-w", dir, "--", "/attacker", "inherited")
			got := outcomes(out)
			if err == nil && (got["root is"] != rootType() || got["host's work"] == "DONE" || got["host's root/.cache"] == "DONE") {
				t.Errorf("%s: in the folder %s: %v", service, dir, got)
			}
		}
	}
}

func TestSetIDBitsGiveNothing(t *testing.T) {
	unharmed(t)
	for _, service := range []string{"plain", "armed"} {
		if out, err := server.Isle("exec", "target", "-s", service, "--", "sh", "-c", "cp /attacker /data/setuid && chmod 6755 /data/setuid"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		for _, path := range []string{"/setuid", "/data/setuid"} {
			out, err := server.Isle("exec", "target", "-s", service, "-u", "nobody", "--", path, "identity")
			got := outcomes(out)
			if service == "plain" && strings.Contains(out+errorText(err), "cannot become user") {
				continue // nor can it be started as someone else
			}
			if err != nil || got["uid"] != "65534 65534" || got["gid"] != "65534 65534" || got["NoNewPrivs"] != "1" || got["Seccomp"] != "2" {
				t.Errorf("%s: %s as nobody: %v %v", service, path, got, err)
			}
			if service == "plain" && (got["setuid 0"] != "EPERM" || got["CapBnd"] != "0000000000000000") {
				t.Errorf("%s: %s as nobody: %v", service, path, got)
			}
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

package local

import (
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isle"
	"isle/internal/environment"
)

func TestALaunchIsWhatItsImageSaysAndIsSealed(t *testing.T) {
	eachWay(t, func(t *testing.T, b *bench) {
		l := b.launchOf(isle.NewID())
		want := map[string]string{
			"read /app/file":        "above",
			"read /etc/shadow":      "secret",
			"owner /etc/shadow":     "0:42 640",
			"owner /app/kept":       "1000:1000 644",
			"owner /":               "0:0 755",
			"read /etc/hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 web\n127.0.0.1 db\n",
			"read /etc/hostname":    "web\n",
			"read /etc/resolv.conf": resolvConf,

			"write /x":                     "read-only file system",
			"write /etc/passwd":            "read-only file system",
			"write /isle/init":             "read-only file system",
			"write /proc/sys/kernel/panic": "read-only file system",
			"write /tmp/x":                 "written",
			"write /run/x":                 "written",
			"write /dev/shm/x":             "written",
			"owner /tmp":                   "0:0 1777",
			"owner /dev/null":              "65534:65534 666",
			"read /proc/keys":              "",
			"list /sys":                    "",
			"list /isle":                   "init",
			"status NoNewPrivs":            "1",
			"status Seccomp":               "2",
			"status CapBnd":                "00000000000001eb",
			"status CapEff":                "00000000000001eb",
			"status CapInh":                "0000000000000000",
			"status CapAmb":                "0000000000000000",
			"read /proc/self/uid_map":      fmt.Sprintf("%10d %10d %10d\n", 0, testUIDs, 65536),
			"links":                        "lo true",
			"call 41 16 3 0":               "done", "call 41 16 3 4": "function not implemented", "call 41 1 1 0": "done", "call 41 17 3 0": "function not implemented",
		}
		if b.class == classGvisor {
			maps.Copy(want, map[string]string{ // what its own kernel says of these
				"read /proc/keys":              "no such file or directory",
				"write /proc/sys/kernel/panic": "operation not permitted",
				"owner /dev/null":              "0:0 666",
				"status CapBnd":                "00000000002001eb", // isle-init's, with SYS_ADMIN over that kernel
				"status CapEff":                "00000000002001eb",
				"read /proc/self/uid_map":      fmt.Sprintf("%10d %10d %10d\n", 0, 0, uint32(math.MaxUint32)),
				"links":                        "",
			})
		}
		var probes []string
		for p := range want {
			probes = append(probes, p)
		}
		slices.Sort(probes)
		probes = append(probes, "read /proc/self/mountinfo", "read /proc/self/cgroup")
		l = b.launchOf(l.Instance, probes...)
		b.up(&l)
		got := b.report(l)
		for p, w := range want {
			if got[p] != w {
				t.Errorf("%s: %q, want %q", p, got[p], w)
			}
		}
		if inside := strings.ReplaceAll(got["read /proc/self/mountinfo"], b.init, ""); strings.Contains(inside, b.state) || strings.Contains(inside, b.private) {
			t.Errorf("a path of the host is seen inside:\n%s", got["read /proc/self/mountinfo"])
		}
		for line := range strings.Lines(got["read /proc/self/cgroup"]) {
			if !strings.HasSuffix(line, ":/\n") && !strings.Contains(line, ":cpuset:") && !strings.Contains(line, ":blkio:") {
				t.Errorf("a control group of the host is seen inside: %s", line)
			}
		}
	})
}

func TestWhatReachesTheKernelOrTheHostIsRefused(t *testing.T) {
	const (
		refused = "operation not permitted"
		unknown = "function not implemented"
	)
	if runtime.GOARCH != "amd64" {
		t.Fatal("add this architecture's system call numbers")
	}
	want := map[string]string{
		"call 165 0 0 0 0":               refused, // mount
		"call 166 0 0":                   refused, // umount2
		"call 272 131072":                refused, // unshare
		"call 308 3 0":                   refused, // setns
		"call 101 0 0 0 0":               refused, // ptrace
		"call 321 0 0 0":                 refused, // bpf
		"call 250 0 0":                   refused, // keyctl
		"call 248 0 0 0 0 0":             refused, // add_key
		"call 425 1 0":                   refused, // io_uring_setup
		"call 298 0 0 0 0 0":             refused, // perf_event_open
		"call 323 0":                     refused, // userfaultfd
		"call 175 0 0 0":                 refused, // init_module
		"call 313 0 0 0":                 refused, // finit_module
		"call 246 0 0 0 0":               refused, // kexec_load
		"call 304 0 0 0":                 refused, // open_by_handle_at
		"call 169 0 0 0 0":               refused, // reboot
		"call 167 0 0":                   refused, // swapon
		"call 103 2 0 0":                 refused, // syslog
		"call 164 0 0":                   refused, // settimeofday
		"call 161 0":                     refused, // chroot
		"call 155 0 0":                   refused, // pivot_root
		"call 310 1 0 0 0 0":             refused, // process_vm_readv
		"call 56 268435456 0 0 0 0":      unknown, // clone(CLONE_NEWUSER)
		"call 435 0 0":                   unknown, // clone3
		"call 9999":                      unknown,
		"call 135 8388608":               unknown, // personality(ADDR_NO_RANDOMIZE is 0x40000)
		"call 41 16 3 0":                 "done",  // socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)
		"call 41 16 3 4":                 unknown, // NETLINK_SOCK_DIAG
		"call 41 17 3 0":                 unknown, // AF_PACKET
		"call 41 40 1 0":                 unknown, // AF_VSOCK
		"call 41 38 5 0":                 unknown, // AF_ALG
		"call 41 2 3 1":                  refused, // a raw IPv4 socket
		"mknod /tmp/kmsg":                refused,
		"write /proc/self/oom_score_adj": "invalid argument",
		"write /dev/sda":                 "written", // an ordinary file on a tmpfs
		"list /proc/acpi":                "",
		"list /sys/fs/cgroup":            "no such file or directory",
		"write /proc/1/root/../../etc/x": "read-only file system",
	}
	eachWay(t, func(t *testing.T, b *bench) {
		var probes []string
		for p := range want {
			probes = append(probes, p)
		}
		slices.Sort(probes)
		// The second launch has the seccomp filter that crun made for the first.
		for _, which := range []string{"first", "second"} {
			l := b.launchOf(isle.NewID(), append(probes, "status Seccomp_filters")...)
			b.up(&l)
			got := b.report(l)
			for p, w := range want {
				// What a sandbox's own kernel lacks it lacks in words of its own.
				if got[p] != w && (b.class != classGvisor || !slices.Contains(lacking, got[p])) {
					t.Errorf("%s launch: %s: %q, want %q", which, p, got[p], w)
				}
			}
			if b.class == classGvisor {
				continue
			}
			if n := got["status Seccomp_filters"]; n != "1" {
				t.Errorf("%s launch: %s filters", which, n)
			}
			config, err := os.ReadFile(filepath.Join(b.dir(l.Instance, l.ID), "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			if reused := strings.Contains(string(config), filterKey); reused != (which == "second" && b.crun()) {
				t.Errorf("%s launch: reuses a filter: %v", which, reused)
			}
		}
	})
}

// lacking are the errors of what a kernel does not have.
var lacking = []string{"function not implemented", "operation not permitted", "permission denied", "no such file or directory"}

func TestNothingIsLeftOfWhatIsRemoved(t *testing.T) {
	install(t, "mke2fs")
	eachWay(t, func(t *testing.T, b *bench) {
		volume := isle.NewID()
		if err := b.volumes.Create(t.Context(), volume, 32<<20); err != nil {
			t.Fatal(err)
		}
		l := b.launchOf(isle.NewID(), "list /data", "owner /data", "write /data/x")
		l.Volumes = []environment.Mount{{Volume: volume, Path: "/data"}}
		exited := b.up(&l)
		if r := b.report(l); r["list /data"] != "" || r["owner /data"] != "0:0 755" || r["write /data/x"] != "written" {
			t.Errorf("%q", r)
		}
		var null syscall.Stat_t
		if err := syscall.Stat("/dev/null", &null); err != nil || null.Uid != 0 || null.Gid != 0 {
			t.Errorf("the host's /dev/null was given to %d:%d (%v)", null.Uid, null.Gid, err)
		}
		if mounts := hostSees(t, b.Driver); strings.Contains(mounts, "mount ") {
			t.Errorf("a mount of a launch is seen by the host:\n%s", mounts)
		}
		all, err := b.List(t.Context())
		if err != nil || !slices.Equal(all, []environment.Sandbox{{Instance: l.Instance, Launch: l.ID, Alive: true}}) {
			t.Errorf("%v, %v", all, err)
		}
		if u, err := b.Usage(t.Context(), l.Instance); err != nil || u.Memory == 0 || u.PIDs == 0 || u.CPU == 0 {
			t.Errorf("%+v, %v", u, err)
		}
		for range 2 { // idempotent
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
		}
		<-exited
		seesNothing(t, b.Driver)
	})
}

func TestAServerThatStartsAgainFindsAndEndsWhatRuns(t *testing.T) {
	eachRuntime(t, func(t *testing.T, b *bench) {
		running, ended := b.launchOf(isle.NewID()), b.launchOf(isle.NewID(), "end")
		b.up(&running)
		<-b.up(&ended)
		// The server dies: nothing is told to anyone, and another one starts.
		b.Driver.Close()
		b.Driver = b.open(b.state, b.runtimeName())
		all, err := b.List(t.Context())
		want := []environment.Sandbox{
			{Instance: running.Instance, Launch: running.ID, Alive: true},
			{Instance: ended.Instance, Launch: ended.ID},
		}
		if err != nil || len(all) != 2 || !slices.Contains(all, want[0]) || !slices.Contains(all, want[1]) {
			t.Errorf("%v, %v", all, err)
		}
		exits := make(chan isle.ID, 3)
		for _, l := range []environment.Launch{running, ended} {
			if err := b.Watch(l.Instance, l.ID, func() { exits <- l.ID }); err != nil {
				t.Fatal(err)
			}
		}
		if id := <-exits; id != ended.ID {
			t.Errorf("%s has not ended", id)
		}
		if err := b.Kill(t.Context(), running.Instance, running.ID); err != nil {
			t.Fatal(err)
		}
		if id := <-exits; id != running.ID {
			t.Errorf("%s ended twice", id)
		}
		for _, l := range []environment.Launch{running, ended} {
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
		}
		seesNothing(t, b.Driver)
	})
}

func TestWhatAServerLeftHalfDoneIsFoundAndRemoved(t *testing.T) {
	b := newBench(t, "crun")
	// Killed after each step of a launch: the folder, the groups, the runtime
	// in them that has not got to making a container.
	folder, group, process := isle.NewID(), isle.NewID(), isle.NewID()
	for _, id := range []isle.ID{folder, process} {
		if err := os.MkdirAll(b.dir(id, id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []isle.ID{group, process} {
		if err := b.Prepare(t.Context(), environment.Shared{Instance: id}); err != nil {
			t.Fatal(err)
		}
	}
	in, err := b.groups.add(string(process), string(process))
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	args := append([]string{"-c", enter, "sh"}, in.files...)
	cmd := exec.Command("/bin/sh", append(args, "--", "sleep", "1000")...)
	if in.group != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.group.Fd())}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all, err := b.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Errorf("%v, %v", all, err)
	}
	for _, s := range all {
		if s.Alive {
			t.Errorf("%v is not alive", s)
		}
		if err := b.Remove(t.Context(), s.Instance); err != nil {
			t.Error(err)
		}
	}
	cmd.Wait() // it was killed
	seesNothing(t, b.Driver)
}

func TestAForkBombDiesAtOnceAndAMemoryBombAlone(t *testing.T) {
	b := newBench(t, "crun")
	l := b.launchOf(isle.NewID(), "fork")
	exited := b.up(&l)
	neighbour := b.launchOf(isle.NewID())
	b.up(&neighbour)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		u, err := b.Usage(t.Context(), l.Instance)
		if err != nil {
			t.Fatal(err)
		}
		if u.PIDs > l.Limits.PIDs {
			t.Fatalf("%d processes, limit %d", u.PIDs, l.Limits.PIDs)
		}
		if u.PIDs > l.Limits.PIDs*3/4 { // a slow machine may not get there: what counts is how it ends
			break
		}
	}
	if err := b.Kill(t.Context(), l.Instance, l.ID); err != nil {
		t.Fatal(err)
	}
	<-exited
	memory := b.launchOf(isle.NewID(), "fill /tmp/full", "fill /dev/shm/full", "eat")
	memory.Limits.Memory = 64 << 20
	exited = b.up(&memory)
	<-exited
	if u, err := b.Usage(t.Context(), memory.Instance); err != nil || u.OOMKill == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if !b.alive(neighbour.Instance, neighbour.ID) {
		t.Error("the neighbour is gone")
	}
}

func TestAFailedLaunchSaysWhyAndLeavesNothing(t *testing.T) {
	b := newBench(t, "crun")
	for name, spoil := range map[string]func(*environment.Launch){
		"layer":   func(l *environment.Launch) { l.Layers = []string{b.init} },
		"missing": func(l *environment.Launch) { l.Layers = []string{"/nowhere"} },
		"init":    func(l *environment.Launch) { l.Init = "/nowhere" },
		"dead":    func(l *environment.Launch) { l.Boot = []byte("not JSON") },
		"network": func(l *environment.Launch) { l.Network = "/nowhere" },
		"tmpfs":   func(l *environment.Launch) { l.Tmpfs = []string{"/proc/x"} },
	} {
		t.Run(name, func(t *testing.T) {
			l := b.launchOf(isle.NewID())
			spoil(&l)
			ended := make(chan struct{})
			l.Exited = func() { close(ended) }
			if err := b.Prepare(t.Context(), environment.Shared{Instance: l.Instance}); err != nil {
				t.Fatal(err)
			}
			if err := b.Launch(t.Context(), l); err != nil {
				t.Log(err)
				if left := b.launches()[l.Instance]; len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
			} else if name != "dead" {
				t.Error("it was launched")
			} else {
				<-ended // it read Boot, and did not like it
			}
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Fatal(err)
			}
		})
	}
	seesNothing(t, b.Driver)
}

func TestControlGroupsOfVersionOneAloneSuffice(t *testing.T) {
	b := newBench(t, "crun")
	hide := b.groups.hybrid()
	if len(hide) == 0 {
		t.Log("this machine has no v1 hierarchies: it shows v2 alone")
		return
	}
	b.groups.hierarchies = slices.DeleteFunc(b.groups.hierarchies, func(h hierarchy) bool { return h.v2 })
	b.groups.naming = slices.IndexFunc(b.groups.hierarchies, func(h hierarchy) bool { return slices.Contains(h.controllers, "freezer") })
	l := b.launchOf(isle.NewID(), "fork")
	exited := b.up(&l)
	if !b.alive(l.Instance, l.ID) {
		t.Error("it does not run")
	}
	if err := b.Remove(t.Context(), l.Instance); err != nil {
		t.Fatal(err)
	}
	<-exited
	seesNothing(t, b.Driver)
}

func TestManyLaunchesAtOnceDoNotDisturbEachOther(t *testing.T) {
	b := newBench(t, "crun")
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			l := b.launchOf(isle.NewID(), "read /proc/self/uid_map")
			l.UIDBase = testUIDs + uint32(i)*idRange
			exited := make(chan struct{})
			l.Exited = func() { close(exited) }
			if err := b.Prepare(t.Context(), environment.Shared{Instance: l.Instance, Limits: l.Limits}); err != nil {
				t.Error(err)
				return
			}
			if err := b.Launch(t.Context(), l); err != nil {
				t.Error(err)
				return
			}
			if err := b.Remove(t.Context(), l.Instance); err != nil {
				t.Error(err)
			}
			<-exited
		})
	}
	all.Wait()
	seesNothing(t, b.Driver)
}

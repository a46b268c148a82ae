// Package gvisor says how isle-runsc is called: gVisor's OCI runtime, which
// runs all services of an environment under one kernel in user space.
//
// A sandbox is that kernel (the sentry, a process of the host) with a root
// container in which a program of a few bytes waits; it has the environment's
// network and lasts until it is killed. Each service is a container of its own
// in the sandbox, with its own files, processes and hostname. Beside the
// sentry each container has a gofer, a process of the host that opens its files
// for the sentry. The gofer lives exactly as long as its container: when the
// container's first process ends the gofer does, and when the gofer is killed
// the sentry kills the container. So what the host sees of a container is its
// gofer.
//
// What the sentry says is not trusted: behind it may be whoever broke out of
// the environment into it. It can end its own containers, or not end them, and
// nothing else depends on it.
package gvisor

import (
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The annotations of the Kubernetes runtime interface by which runsc knows what
// belongs to one sandbox.
const (
	typeKey    = "io.kubernetes.cri.container-type"
	sandboxKey = "io.kubernetes.cri.sandbox-id"
	nameKey    = "io.kubernetes.cri.container-name"
)

// A Runtime is isle-runsc with a folder that it keeps its records in.
type Runtime struct {
	Program string // its path
	// Root holds the records and the control sockets of sandboxes. Its path is
	// short, because a socket's is (unix(7)), and it need not outlive a reboot.
	Root string
}

// flags are those of every call. They are part of what a memory snapshot
// depends on, like the program.
//
// directfs has the sentry open files itself, below folders that the gofer has
// opened for it, instead of asking the gofer for each. It halves what files
// cost. Whoever has broken into the sentry can then reach what the gofer could
// give: the image, which is read-only and the environment's own, and the
// environment's volumes, with the environment's own uids in a user namespace;
// the sentry's root folder is empty, and its seccomp filter lets it open
// nothing but by such a folder and without following links. That is worth less
// than what the environment has in any case.
//
// Connections to outside are ended where memory is brought back
// (allow-live-tcp-migration): a fork's end of them would be its parent's.
//
// Host sockets, named pipes and devices are not reached through volumes. The
// rest of what matters are gVisor's defaults, said here so that another version
// does not change them.
func (r Runtime) flags(log string) []string {
	return []string{
		"--root=" + r.Root, "--log=" + log, "--log-format=text",
		"--platform=systrap", "--network=sandbox", "--gofer-network-namespace=new",
		"--directfs=true", "--overlay2=none", "--file-access=exclusive", "--file-access-mounts=shared",
		"--host-uds=none", "--host-fifo=none", "--character-device-policy=emulated-only",
		"--net-raw=false", "--allow-live-tcp-migration=false", "--allow-packet-socket-write=false", "--rootless=false", "--allow-suid=false", "--allow-flag-override=false",
		"--ignore-cgroups=true", "--oci-seccomp=true", "--host-settings=ignore",
		"--sidecar-usage-policy=LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK",
	}
}

// Run is the command line that makes a container of the bundle in a folder and
// starts it; it ends when the container runs. Messages go to the file log.
func (r Runtime) Run(id, bundle, log string, options ...string) []string {
	return slices.Concat([]string{r.Program}, r.flags(log), []string{"run", "--detach", "--bundle", bundle}, options, []string{id})
}

// Restore is the command line that makes a container of the bundle in a folder
// of one that was captured into the folder image, by its name; it ends when the
// container is there. All of them go on when the last is. What may differ from
// the captured one is up to whoever has made the bundle: its uids do, which runsc
// would refuse.
func (r Runtime) Restore(id, bundle, log, image string, options ...string) []string {
	return slices.Concat([]string{r.Program}, r.flags(log), []string{"--restore-spec-validation=ignore", "restore", "--detach", "--background",
		"--image-path", image, "--bundle", bundle}, options, []string{id})
}

// Socket is the path of a sandbox's control socket.
func (r Runtime) Socket(sandbox string) string {
	return filepath.Join(r.Root, "runsc-"+sandbox+".sock")
}

// Try is the command line that runs true in a sandbox of its own, over this
// machine's files, which it does not change, and without a network. It shows
// whether the machine has what gVisor needs, and leaves nothing but the folder
// Root and the file log.
func (r Runtime) Try(log string) []string {
	return slices.Concat([]string{r.Program}, r.flags(log), []string{"--network=none", "do", "--quiet", "/bin/true"})
}

// records are the files that runsc keeps about a container.
func (r Runtime) records(sandbox, id string) []string {
	base := filepath.Join(r.Root, id+"_sandbox:"+sandbox)
	return []string{base + ".state", base + ".lock"}
}

// Sandbox makes of s the root container of a sandbox: it has no command of the
// environment's, and waits.
func Sandbox(s *specs.Spec, id string) {
	s.Annotations = map[string]string{typeKey: "sandbox", sandboxKey: id, nameKey: "sandbox"}
	plain(s)
}

// Container makes of s a container in a sandbox.
func Container(s *specs.Spec, sandbox, name string) {
	s.Annotations = map[string]string{typeKey: "container", sandboxKey: sandbox, nameKey: name}
	plain(s)
}

// Writable lets a container write so many bytes over its root: the sandbox's own
// kernel keeps them, in the sandbox's memory.
func Writable(s *specs.Spec, size int64) {
	const root = "dev.gvisor.spec.rootfs."
	s.Annotations[root+"source"], s.Annotations[root+"type"] = s.Root.Path, "bind"
	s.Annotations[root+"overlay"], s.Annotations[root+"options"] = "memory", "size="+strconv.FormatInt(size, 10)
}

// plain takes from s what gVisor has no use for: the namespaces of a container
// are inside the sandbox, and a user namespace cannot be joined by path.
func plain(s *specs.Spec) {
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			s.Linux.Namespaces[i].Path = ""
		}
	}
}

package escape

import "isle/test/lab"

// sandboxed is whether the environments are of the class gvisor, as
// ISLE_TEST_ISOLATION says: all that is attacked is then a kernel of their own,
// in a process of the machine that is nobody there. What is the same on the
// machine afterwards is what counts; this is what that kernel answers.
var sandboxed = lab.Isolation() == "gvisor"

// lacks are how gVisor's kernel says that it does not have such a thing at all.
var lacks = []string{"ENOENT", "EINVAL", "ENOTSUP", "ENOTTY", "ENODEV", "ENXIO", "ESRCH", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EPROTOTYPE",
	"EFAULT", "EBADF", "EBADFD", "EIO"}

// inSandbox are the attempts that gVisor's kernel grants, because nobody but
// the service itself has anything of what it grants: a name that leads nowhere,
// or a setting of the kernel that the environment has for itself.
var inSandbox = map[string]string{
	"open /proc/1/ns/ipc":  "DONE", // the links; to enter what they name is refused
	"open /proc/1/ns/mnt":  "DONE",
	"open /proc/1/ns/net":  "DONE",
	"open /proc/1/ns/pid":  "DONE",
	"open /proc/1/ns/user": "DONE",
	"open /proc/1/ns/uts":  "DONE",

	"list /proc/1/fdinfo": "DONE", // numbers
	"read /proc/1/io":     "DONE", // figures

	"nice -20":                "DONE", // among the environment's own
	"oom_score_adj -1000":     "DONE",
	"real-time disk priority": "DONE", // has no effect

	"write /proc/sys/net/ipv4/ip_forward": "DONE", // of its own network stack, which has one link

	"option: bpf":         "DONE", // taken and ignored
	"option: debug":       "DONE",
	"option: priority":    "DONE",
	"option: transparent": "DONE", // the airlock still takes nothing but the sandbox's own address
	"socket: ping":        "DONE", // what it sends the airlock refuses and records
}

// rootType is the type of the file system that a service's root folder shows:
// overlayfs, or what gVisor makes of it.
func rootType() string {
	if sandboxed {
		return "0x1021997" // V9FS_MAGIC
	}
	return "0x794c7630" // OVERLAYFS_SUPER_MAGIC
}

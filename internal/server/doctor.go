package server

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isle/internal/api"
)

// Doctor says what the machine has and lacks for a server of this
// configuration. It needs no server, and no root.
func Doctor(cfg Config) []api.Check {
	var out []api.Check
	add := func(name, state, message, remedy string) {
		out = append(out, api.Check{Name: name, State: state, Message: message, Remedy: remedy})
	}
	if os.Geteuid() == 0 {
		add("root", api.CheckOK, "the server may make namespaces, mounts and control groups", "")
	} else {
		add("root", api.CheckMissing, "you are not root, and only root may run the server and speak to it", "sudo isle doctor")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		flat := api.Flatten(err)
		add("isle-init", api.CheckMissing, flat.Message, flat.Hint)
	} else {
		add("isle-init", api.CheckOK, cfg.Init, "")
	}
	return append(out, checkKernel(), checkRuntime(cfg), checkVolumes(), checkKeyring(), checkSpace(cfg))
}

// checkKernel looks for what roots are mounted with.
func checkKernel() api.Check {
	c := api.Check{Name: "kernel", State: api.CheckOK}
	var uts unix.Utsname
	release := "Linux"
	if unix.Uname(&uts) == nil {
		release = "Linux " + unix.ByteSliceToString(uts.Release[:])
	}
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		c.State, c.Message, c.Remedy = api.CheckMissing, "/proc is not mounted", "mount -t proc proc /proc"
		return c
	}
	var lacking []string
	for _, fs := range []string{"erofs", "overlay", "ext4"} {
		if !strings.Contains(string(filesystems), "\t"+fs+"\n") {
			lacking = append(lacking, fs)
		}
	}
	if len(lacking) > 0 { // they may be modules that load on demand
		c.State, c.Remedy = api.CheckWarning, "modprobe -a "+strings.Join(lacking, " ")
		c.Message = release + " has not loaded " + strings.Join(lacking, ", ")
		return c
	}
	c.Message = release + " with erofs, overlay and ext4"
	return c
}

// checkRuntime looks for what starts containers.
func checkRuntime(cfg Config) api.Check {
	names := []string{"crun", "runc"}
	if cfg.Runtime != "" {
		names = []string{cfg.Runtime}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return api.Check{Name: "runtime", State: api.CheckOK, Message: path}
		}
	}
	return api.Check{Name: "runtime", State: api.CheckMissing, Message: "there is no " + strings.Join(names, " and no "), Remedy: "apt-get install crun"}
}

// checkVolumes looks for what makes volumes.
func checkVolumes() api.Check {
	path, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return api.Check{Name: "volumes", State: api.CheckMissing, Message: "there is no mkfs.ext4, so no volume can be made", Remedy: "apt-get install e2fsprogs"}
	}
	return api.Check{Name: "volumes", State: api.CheckOK, Message: path}
}

// checkKeyring looks for what Debian's releases are signed with.
func checkKeyring() api.Check {
	for _, name := range []string{"debian-archive-keyring.gpg", "debian-archive-keyring.pgp"} {
		path := filepath.Join("/usr/share/keyrings", name)
		if _, err := os.Stat(path); err == nil {
			return api.Check{Name: "keyring", State: api.CheckOK, Message: path}
		}
	}
	return api.Check{
		Name: "keyring", State: api.CheckMissing, Message: "Debian's archive keyring is not there, so no package can be trusted",
		Remedy: "apt-get install debian-archive-keyring",
	}
}

// checkSpace looks for room where the state folder is, or will be.
func checkSpace(cfg Config) api.Check {
	folder := cfg.State
	var fs unix.Statfs_t
	for unix.Statfs(folder, &fs) != nil && folder != "/" {
		folder = filepath.Dir(folder)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	c := api.Check{Name: "space", State: api.CheckOK, Message: fmt.Sprintf("%.1f GiB free for %s", float64(free)/(1<<30), cfg.State)}
	switch {
	case free < 1<<30:
		c.State, c.Remedy = api.CheckMissing, "make room (`isle gc` frees what nothing names), or choose another folder with --state"
	case free < 5<<30:
		c.State, c.Remedy = api.CheckWarning, "`isle gc` frees what nothing names"
	}
	return c
}

// Package vm shows Isle on another kernel: Debian 12's stock one (6.1, pure
// cgroup v2, EROFS through loop devices), in a virtual machine under software
// emulation. The machine has no network; the packages of the smoke test's
// environment travel in as one exported file.
package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"isle/test/lab"
)

const kernelPackage = "linux-image-cloud-amd64"

// boot is the longest the machine may run. Software emulation is some twenty
// times slower than the machine it runs on.
const boot = 12 * time.Minute

func TestOneFileLaunchesEntersDeniesAndTearsDownOnKernel61(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Fatalf("the smoke test boots an amd64 kernel; this is %s", runtime.GOARCH)
	}
	bin := binaries(t)
	work := t.TempDir()
	kernel := unpackKernel(t, work)
	export := exportPackages(t, bin, work)

	root := filepath.Join(work, "root")
	release := layRoot(t, root, bin, kernel, export)
	disk := filepath.Join(work, "root.ext4")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", root, disk, "3G")
	initrd := layInitrd(t, work, root, release)

	ctx, cancel := context.WithTimeout(context.Background(), boot)
	defer cancel()
	var console bytes.Buffer
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2048", "-smp", "2",
		"-kernel", filepath.Join(kernel, "boot", "vmlinuz-"+release), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 root=/dev/vda",
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+disk,
		"-nic", "none", "-display", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none")
	qemu.Stdout = io.MultiWriter(&console, &lineWriter{t: t})
	qemu.Stderr = qemu.Stdout
	if err := qemu.Run(); err != nil {
		t.Fatalf("the virtual machine: %v (%v)", err, ctx.Err())
	}
	out := console.String()
	for _, want := range []string{
		"SMOKE kernel 6.1", "SMOKE cgroup2fs", "SMOKE exec inside", "SMOKE read-only", "SMOKE refused", "SMOKE down", "SMOKE nothing left", "SMOKE OK",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the console never said %q", want)
		}
	}
}

// lineWriter logs the console line by line, as it comes.
type lineWriter struct {
	t    *testing.T
	rest string
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		w.t.Log(strings.TrimRight(line, "\r"))
		w.rest = rest
	}
}

// binaries returns the folder of isle and isle-init: ISLE_BIN, else bin/ of the
// checkout, where `make build` puts them.
func binaries(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("ISLE_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../../bin")
	}
	if _, err := os.Stat(filepath.Join(dir, "isle")); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return dir
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// download returns the file of a Debian package, which apt is asked for once:
// the folder of packages outlives the test.
func download(t *testing.T, name string) string {
	t.Helper()
	dir := lab.Cache("packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if debs, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb")); len(debs) > 0 {
		return debs[0]
	}
	cmd := exec.Command("apt-get", "download", "-q", name)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apt-get download %s: %v\n%s", name, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if len(debs) == 0 {
		t.Fatalf("apt-get download %s left no package", name)
	}
	return debs[0]
}

// unpackKernel downloads Debian's kernel package through apt and unpacks it.
func unpackKernel(t *testing.T, work string) string {
	t.Helper()
	depends := run(t, "apt-cache", "depends", kernelPackage)
	name := regexp.MustCompile(`linux-image-\S+`).FindString(strings.SplitN(depends, "\n", 2)[1])
	if name == "" {
		t.Fatalf("%s names no kernel:\n%s", kernelPackage, depends)
	}
	kernel := filepath.Join(work, "kernel")
	run(t, "dpkg-deb", "-x", download(t, name), kernel)
	return kernel
}

// exportPackages locks the smoke test's file here, where the mirror is, and
// exports what the lock names.
func exportPackages(t *testing.T, bin, work string) string {
	t.Helper()
	project := filepath.Join(work, "smoke")
	if err := os.MkdirAll(project, 0o755); err != nil {
		t.Fatal(err)
	}
	file := "name: smoke\nservices:\n  one:\n    command: [sleep, infinity]\n    volumes: {/data: {size: 64MiB}}\n    run: [echo built > /built]\nlimits: {cpus: 1, memory: 128MiB, pids: 64}\n"
	if err := os.WriteFile(filepath.Join(project, "isle.yaml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	isle := filepath.Join(bin, "isle")
	state := filepath.Join(work, "state")
	t.Setenv("ISLE_CHECKPOINTS", filepath.Join(work, "seen"))
	t.Setenv("ISLE_KEYS", filepath.Join(work, "keys"))
	t.Setenv("XDG_STATE_HOME", filepath.Join(work, "seen"))
	defer run(t, isle, "--state", state, "server", "stop")
	run(t, isle, "--state", state, "build", project)
	run(t, isle, "--state", state, "lock", "export", "--dir", project, filepath.Join(project, "packages.tar"))
	return project
}

// layRoot makes the machine's root: busybox, isle, crun and mke2fs with the
// libraries they need, the kernel's modules, and the project.
func layRoot(t *testing.T, root, bin, kernel, project string) (release string) {
	t.Helper()
	for _, d := range []string{"bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "proc", "sys", "dev", "tmp", "run", "etc", "root", "var/lib", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, busybox(t, filepath.Dir(root)), filepath.Join(root, "bin/busybox"), 0o755)
	for _, b := range []string{"isle", "isle-init"} {
		copyFile(t, filepath.Join(bin, b), filepath.Join(root, "usr/local/bin", b), 0o755)
	}
	for _, tool := range []string{"crun", "mke2fs"} {
		copyWithLibraries(t, tool, root)
	}
	write(t, filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	write(t, filepath.Join(root, "etc/group"), "root:x:0:\n", 0o644)
	copyFile(t, "/etc/mke2fs.conf", filepath.Join(root, "etc/mke2fs.conf"), 0o644)
	modules, _ := filepath.Glob(filepath.Join(kernel, "lib/modules/*"))
	if len(modules) != 1 {
		t.Fatalf("want one kernel's modules, have %v", modules)
	}
	release = filepath.Base(modules[0])
	if err := os.CopyFS(filepath.Join(root, "lib/modules", release), os.DirFS(modules[0])); err != nil {
		t.Fatal(err)
	}
	run(t, filepath.Join(root, "bin/busybox"), "depmod", "-b", root, release)
	if err := os.CopyFS(filepath.Join(root, "root/smoke"), os.DirFS(project)); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("guest.sh")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "sbin/init"), string(script), 0o755)
	return release
}

// layInitrd packs the few modules that find the disk.
func layInitrd(t *testing.T, work, root, release string) string {
	t.Helper()
	dir := filepath.Join(work, "initrd")
	for _, d := range []string{"bin", "proc", "dev", "new"} {
		os.MkdirAll(filepath.Join(dir, d), 0o755)
	}
	copyFile(t, filepath.Join(root, "bin/busybox"), filepath.Join(dir, "bin/busybox"), 0o755)
	var load strings.Builder
	for _, m := range []string{"virtio_pci", "virtio_blk"} {
		for _, path := range withDependencies(t, root, release, m) {
			target := filepath.Base(path)
			copyFile(t, path, filepath.Join(dir, target), 0o644)
			fmt.Fprintf(&load, "/bin/busybox insmod /%s 2>/dev/null\n", target)
		}
	}
	write(t, filepath.Join(dir, "init"), "#!/bin/busybox sh\n/bin/busybox mount -t proc none /proc\n/bin/busybox mount -t devtmpfs none /dev\n"+load.String()+
		"while [ ! -b /dev/vda ]; do /bin/busybox sleep 0.1; done\n/bin/busybox mount -t ext4 /dev/vda /new\n/bin/busybox umount /proc\n/bin/busybox mount -o move /dev /new/dev\nexec /bin/busybox switch_root /new /sbin/init\n", 0o755)
	out := filepath.Join(work, "initrd.img")
	if err := writeCPIO(out, dir); err != nil {
		t.Fatal(err)
	}
	return out
}

func withDependencies(t *testing.T, root, release, module string) []string {
	t.Helper()
	base := filepath.Join(root, "lib/modules", release)
	deps, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(deps), "\n") {
		name, rest, ok := strings.Cut(line, ":")
		if !ok || filepath.Base(name) != module+".ko" {
			continue
		}
		var out []string
		fields := strings.Fields(rest)
		for i := len(fields) - 1; i >= 0; i-- {
			out = append(out, filepath.Join(base, fields[i]))
		}
		return append(out, filepath.Join(base, name))
	}
	t.Fatalf("the kernel has no module %s", module)
	return nil
}

// busybox returns Debian's static busybox, from its package.
func busybox(t *testing.T, work string) string {
	t.Helper()
	out := filepath.Join(work, "busybox")
	run(t, "dpkg-deb", "-x", download(t, "busybox-static"), out)
	return filepath.Join(out, "bin/busybox")
}

func copyWithLibraries(t *testing.T, tool, root string) {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if path = filepath.Join("/sbin", tool); fileMissing(path) {
			t.Fatalf("%s is not installed: run scripts/setup.sh", tool)
		}
	}
	copyFile(t, path, filepath.Join(root, "usr/bin", filepath.Base(path)), 0o755)
	for _, lib := range regexp.MustCompile(`(/\S+)`).FindAllString(run(t, "ldd", path), -1) {
		copyFile(t, strings.TrimSuffix(lib, ":"), filepath.Join(root, lib), 0o755)
	}
}

func fileMissing(path string) bool {
	_, err := os.Stat(path)
	return err != nil
}

func copyFile(t *testing.T, from, to string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(b), mode)
}

func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// writeCPIO packs dir as a "newc" cpio archive, the form of an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func writeCPIO(out, dir string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	inode := 0
	entry := func(name string, mode uint32, data []byte) {
		inode++
		h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b := append([]byte(h+name), 0)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		b = append(b, data...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		f.Write(b)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			entry(name, 0o040755, nil)
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		entry(name, 0o100000|uint32(info.Mode().Perm()), b)
		return nil
	})
	entry("TRAILER!!!", 0, nil)
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isle/internal/driver/local/gvisor"
)

// plainRunsc copies a shop with runsc's own checkpoint and restore: the same
// sandbox is saved, and restored with the same files, beside it. What it does
// not do is to copy the volume, which is laid ready for it, to give the copy an
// identity, a line home and a way outside, and to make anything durable.
type plainRunsc struct {
	*shop
	runsc   string
	dir     string
	bundles []string // the sandbox's own first
	inside  string   // network namespace of the copy, pinned
	client  string   // that of its client
	group   string   // control group, beside that of Isle's environments
}

// peerAddress is the copy's, of documentation.
const peerAddress = "198.51.100.2"

func newPlainRunsc(s *shop) (p *plainRunsc, err error) {
	p = &plainRunsc{shop: s, dir: filepath.Join(s.b.peers, "plain")}
	if p.runsc, err = filepath.Abs(filepath.Join(s.b.bin, "isle-runsc")); err != nil {
		return nil, err
	}
	p.inside, p.client = filepath.Join(p.dir, "inside.net"), filepath.Join(p.dir, "client.net")
	p.group = filepath.Join("/sys/fs/cgroup", s.b.group()+"-plain")
	if _, err := os.Stat("/sys/fs/cgroup/cpu"); err == nil { // version 1
		p.group = filepath.Join("/sys/fs/cgroup/cpu", s.b.group()+"-plain")
	}
	if err := errors.Join(os.MkdirAll(p.dir, 0o755), os.MkdirAll(p.group, 0o755)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := p.lay(); err != nil {
		return p, err
	}
	return p, p.network()
}

func (p *plainRunsc) close() {
	p.remove()
	for _, ns := range []string{p.inside, p.client, filepath.Join(p.dir, "records", "null-netns")} {
		_ = unix.Unmount(ns, unix.MNT_DETACH)
	}
	_ = os.Remove(p.group)
	os.RemoveAll(p.dir)
}

// lay makes bundles like those of the sandbox that runs, on copies of its files.
func (p *plainRunsc) lay() error {
	made := filepath.Join(p.b.state, "sandboxes", p.instance)
	launches, err := os.ReadDir(made)
	if err != nil {
		return err
	}
	for _, l := range launches {
		name := l.Name()
		if err := p.layOne(filepath.Join(made, name), name); err != nil {
			return fmt.Errorf("a bundle like %s: %w", name, err)
		}
		if name == "sandbox" {
			p.bundles = slices.Insert(p.bundles, 0, name)
		} else {
			p.bundles = append(p.bundles, name)
		}
	}
	return nil
}

func (p *plainRunsc) layOne(from, name string) error {
	b, err := os.ReadFile(filepath.Join(from, "config.json"))
	if err != nil {
		return err
	}
	var config specs.Spec
	if err := json.Unmarshal(b, &config); err != nil {
		return err
	}
	bundle := filepath.Join(p.dir, name)
	config.Root.Path = filepath.Join(bundle, "root")
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	if name == "sandbox" {
		if err := os.Mkdir(config.Root.Path, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(config.Root.Path, "pause"), gvisor.Pause(), 0o755); err != nil {
			return err
		}
	} else {
		pid, err := os.ReadFile(filepath.Join(from, "pid"))
		if err != nil {
			return err
		}
		root := "/proc/" + strings.TrimSpace(string(pid)) + "/root"
		if err := copyTree(root, config.Root.Path); err != nil {
			return err
		}
		for i, m := range config.Mounts {
			if m.Type != "bind" {
				continue
			}
			source := filepath.Join(bundle, "bind"+strconv.Itoa(i))
			if err := copyTree(root+m.Destination, source); err != nil {
				return err
			}
			config.Mounts[i].Source = source
		}
	}
	for i, ns := range config.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			config.Linux.Namespaces[i].Path = p.inside
		}
	}
	for key, value := range config.Annotations {
		if value == p.instance {
			config.Annotations[key] = p.id("sandbox")
		}
	}
	if b, err = json.Marshal(&config); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o644)
}

// copyTree copies a file or a folder as it is, and nothing that is mounted in it.
func copyTree(from, to string) error {
	if st, err := os.Stat(from); err == nil && st.IsDir() {
		from += "/."
	}
	if out, err := exec.Command("cp", "-a", "--one-file-system", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w\n%s", err, out)
	}
	return nil
}

func (p *plainRunsc) id(bundle string) string { return fmt.Sprintf("plain-%d-%s", os.Getpid(), bundle) }

// run runs isle-runsc with the flags that the driver has, on records of its own
// or the driver's, and in a group that has the same share of the processors as
// that of Isle's environments: a process of no group would have as much as all of
// those together.
func (p *plainRunsc) run(ctx context.Context, records string, args ...string) error {
	log := filepath.Join(p.dir, "log")
	flags := []string{"--root", records, "--log", log, "--platform=systrap", "--network=sandbox", "--gofer-network-namespace=new",
		"--directfs=true", "--overlay2=none", "--file-access=exclusive", "--file-access-mounts=shared", "--ignore-cgroups", "--oci-seccomp",
		"--allow-live-tcp-migration=false", "--host-settings=ignore", "--restore-spec-validation=ignore"}
	// Not /dev/null: it would be the container's.
	stdio, err := os.OpenFile(filepath.Join(p.dir, "stdio"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer stdio.Close()
	const enter = `echo 0 > "$1" && shift && exec "$@"`
	cmd := exec.CommandContext(ctx, "sh", slices.Concat([]string{"-c", enter, "sh", filepath.Join(p.group, "cgroup.procs"), p.runsc}, flags, args)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio, stdio, stdio
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(stdio.Name())
		logged, _ := os.ReadFile(log)
		return fmt.Errorf("runsc %v: %w\n%s%s", args, err, said, logged)
	}
	return nil
}

// records are plain runsc's own.
func (p *plainRunsc) records() string { return filepath.Join(p.dir, "records") }

// forked is one checkpoint and restore.
func (p *plainRunsc) forked(ctx context.Context, t *table) error {
	image := filepath.Join(p.dir, "image")
	began := time.Now()
	if err := p.save(ctx, image); err != nil {
		return err
	}
	saved := time.Now()
	gap, err := p.shop.client.longest(ctx, began, saved)
	if err != nil {
		return err
	}
	t.add(standing, "runsc checkpoint", gap)
	took, err := p.restored(ctx, image)
	if err != nil {
		return err
	}
	t.add(captured, "runsc restore", took)
	t.add(whole, "runsc checkpoint and restore", saved.Sub(began)+took)
	p.remove()
	return os.RemoveAll(image)
}

// save checkpoints the sandbox that runs, which goes on.
func (p *plainRunsc) save(ctx context.Context, image string) error {
	return p.run(ctx, "/run/"+p.b.group()+".gvisor", "checkpoint", "--leave-running", "--compression=none", "--image-path", image, p.instance)
}

// restored restores what was saved, until its first answer.
func (p *plainRunsc) restored(ctx context.Context, image string) (time.Duration, error) {
	restoring := time.Now()
	for _, bundle := range p.bundles { // one after the other, as runsc wants it
		if err := p.run(ctx, p.records(), "restore", "--detach", "--background", "--image-path", image, "--bundle", filepath.Join(p.dir, bundle), p.id(bundle)); err != nil {
			return 0, err
		}
	}
	return firstAnswer(restoring, 8080, &http.Transport{DialContext: p.dial})
}

// remove ends the copy.
func (p *plainRunsc) remove() {
	for _, bundle := range slices.Backward(p.bundles) {
		_ = p.run(context.Background(), p.records(), "delete", "--force", p.id(bundle))
	}
	_ = p.network() // the sandbox took the address off its link
}

// dial connects to the copy, from its client's network.
func (p *plainRunsc) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { // ends with the dialing
		defer close(done)
		err = in(p.client, func() error {
			// A packet that comes before the copy's kernel is there is lost, and
			// another one is sent after a second only.
			conn, err = (&net.Dialer{Timeout: 100 * time.Millisecond}).Dial("tcp4", net.JoinHostPort(peerAddress, port))
			return err
		})
	}()
	<-done
	return conn, err
}

// network makes the copy's network anew: a pair of namespaces, joined.
func (p *plainRunsc) network() error {
	for _, path := range []string{p.inside, p.client} {
		_ = unix.Unmount(path, unix.MNT_DETACH)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { // ends with its thread, which is never unlocked
		runtime.LockOSThread()
		done <- func() error {
			for _, path := range []string{p.inside, p.client} {
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return err
				}
				if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
					return err
				}
				if err := raise("lo", ""); err != nil {
					return err
				}
			}
			inside, err := os.Open(p.inside)
			if err != nil {
				return err
			}
			defer inside.Close()
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "client"}, PeerName: "sandbox"}); err != nil {
				return err
			}
			far, err := netlink.LinkByName("sandbox")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetNsFd(far, int(inside.Fd())), raise("client", "198.51.100.1/24"))
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("the copy's network: %w", err)
	}
	return in(p.inside, func() error { return raise("sandbox", peerAddress+"/24") })
}

// raise brings up a link, with an address.
func raise(name, prefix string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if prefix != "" {
		address, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// in runs something in a pinned network namespace.
func in(path string, run func() error) error {
	done := make(chan error, 1)
	go func() { // ends with its thread, which is never unlocked
		runtime.LockOSThread()
		ns, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- run()
	}()
	return <-done
}

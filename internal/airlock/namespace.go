package airlock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"isle"
)

// The addresses of the two ends of every airlock. They are the same in every
// environment, so that a fork finds the network it left.
var (
	sandboxAddress = netip.MustParsePrefix("198.19.255.2/30")
	airlockAddress = netip.MustParsePrefix("198.19.255.1/30")

	sandboxMAC = net.HardwareAddr{0x02, 0x00, 0xc6, 0x13, 0xff, 0x02}
	airlockMAC = net.HardwareAddr{0x02, 0x00, 0xc6, 0x13, 0xff, 0x01}

	everything = netip.MustParsePrefix("0.0.0.0/0")
	multicast  = netip.MustParsePrefix("224.0.0.0/4")
)

const (
	sandboxLink = "eth0"   // in the sandbox's namespace
	airlockLink = "inside" // in the airlock's namespace

	sandboxPin = "sandbox" // file names below Dir/INSTANCE
	airlockPin = "airlock"

	tmpfsName = "isle-airlocks" // what is mounted at Dir calls itself
)

// A setting is one file below /proc/sys/net of the namespace the writing
// thread is in. IPv4 settings of a new namespace are copied from the host's,
// so what matters is said here, whatever the host has.
type setting struct{ name, value string }

var sandboxSettings = []setting{
	{"ipv4/ip_forward", "0"},
	{"ipv4/ip_unprivileged_port_start", "0"}, // ports below 1024 are as good as any other in a network of one's own
	{"ipv4/ping_group_range", "1 0"},         // nobody
	{"ipv6/conf/default/disable_ipv6", "1"},  // the link, which is made later
	{"ipv6/conf/lo/disable_ipv6", "0"},       // servers that bind ::1 work
}

var airlockSettings = []setting{
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/rp_filter", "1"}, // a source that is not the sandbox's own is dropped
	{"ipv4/conf/default/rp_filter", "1"},
	{"ipv4/conf/all/accept_local", "0"},
	{"ipv4/conf/default/accept_local", "0"},
	{"ipv4/conf/all/route_localnet", "0"},
	{"ipv4/conf/default/route_localnet", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	{"ipv4/icmp_echo_ignore_all", "1"}, // every address is local here: none of them answers a ping
	// Port unreachable is answered always and at once. The limit's budget is one
	// for the whole machine, so that one environment's flood would silence the others.
	{"ipv4/icmp_ratemask", "0"},
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
}

// apply writes the settings of the calling thread's namespace. IPv6 settings
// are missing where the kernel has no IPv6, which is as good.
func apply(settings []setting) error {
	for _, s := range settings {
		path := "/proc/sys/net/" + s.name
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT && strings.HasPrefix(s.name, "ipv6/") {
			continue
		}
		if err == nil {
			_, err = unix.Write(fd, []byte(s.value))
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("write %s to %s: %w", s.value, path, err)
		}
	}
	return nil
}

// onThread runs f on an operating-system thread of its own, which ends with
// it. So whatever namespace f leaves the thread in, no other goroutine ever
// runs there. It is never the process's first thread: that one does not end,
// would keep the namespace, and is what /proc/self shows.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // on another one, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f() // and never unlocked
	}()
	return <-done
}

// within runs f in the network namespace pinned at path.
func within(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
		return f()
	})
}

// A pair is both namespaces of an airlock, joined and nowhere pinned: it is
// gone with its two files.
type pair struct{ airlock, sandbox *os.File }

func (p *pair) close() {
	p.airlock.Close()
	p.sandbox.Close()
}

// newPair makes both namespaces and what joins them. It is called on a thread
// of its own and leaves it in one of them.
func newPair() (*pair, error) {
	airlock, err := unshare(airlockSettings)
	if err != nil {
		return nil, err
	}
	sandbox, err := unshare(sandboxSettings)
	if err != nil {
		airlock.Close()
		return nil, err
	}
	p := &pair{airlock, sandbox}
	if err := join(airlock); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// build takes the spare pair, or makes one if that is nil, calls f in the
// airlock's namespace, and then pins both in dir: the airlock last, so that its
// pin says that all is there. A server that dies before leaves nothing but an
// empty folder.
func build(dir string, spare *pair, f func() error, fault func(point string)) error {
	if spare != nil {
		defer spare.close()
	}
	for _, name := range []string{sandboxPin, airlockPin} {
		file, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDONLY, 0o400)
		if err != nil {
			return err
		}
		file.Close()
	}
	return onThread(func() error {
		p := spare
		if p == nil {
			var err error
			if p, err = newPair(); err != nil {
				return err
			}
			defer p.close()
		}
		if err := unix.Setns(int(p.airlock.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		fault("airlock.joined")
		if err := pin(p.sandbox, filepath.Join(dir, sandboxPin)); err != nil {
			return err
		}
		fault("airlock.half")
		return pin(p.airlock, filepath.Join(dir, airlockPin))
	})
}

// unshare moves the calling thread to a new network namespace and returns it.
func unshare(settings []setting) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, isle.Errorf(isle.Unavailable, "making a network namespace needs root: %w", err).WithHint("run isle server as root")
		}
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := apply(settings); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/net")
}

// join is called in the sandbox's namespace, joins it to the airlock's, and
// leaves the calling thread in that.
func join(airlock *os.File) error {
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = sandboxLink, sandboxMAC
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // the default is one per CPU, mostly unused memory
	// The peer is born in its namespace: moving a link costs a grace period.
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: airlockLink, PeerHardwareAddr: airlockMAC,
		PeerNamespace: netlink.NsFd(int(airlock.Fd())), PeerTxQLen: -1}
	err = inside.LinkAdd(veth)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return isle.Errorf(isle.Unavailable, "this kernel has no veth devices: %w", err).WithHint("modprobe veth")
	}
	if err != nil {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	ours, err := bring(inside, sandboxLink, sandboxAddress, airlockAddress.Addr(), airlockMAC)
	if err != nil {
		return err
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: ours, Dst: ipNet(everything), Gw: airlockAddress.Addr().AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	if err := inside.RouteAdd(&netlink.Route{Dst: ipNet(multicast), Type: unix.RTN_UNREACHABLE}); err != nil {
		return fmt.Errorf("close the way to multicast: %w", err)
	}

	if err := unix.Setns(int(airlock.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer outside.Close()
	if _, err := bring(outside, airlockLink, airlockAddress, sandboxAddress.Addr(), sandboxMAC); err != nil {
		return err
	}
	// Every address is this namespace's own, the sandbox's network aside: what
	// comes in is delivered here or refused here, and there is no way on. It
	// stands in the main table, where the route to the sandbox is longer.
	if err := outside.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: ipNet(everything), Type: unix.RTN_LOCAL,
		Table: unix.RT_TABLE_MAIN, Scope: unix.RT_SCOPE_HOST}); err != nil {
		return fmt.Errorf("make every address local: %w", err)
	}
	return settle(inside)
}

// Readdress gives the sandbox's end of an airlock, in the network namespace
// pinned at path, its address and route where they are missing. A kernel in
// user space takes them for itself when it starts, off the host's link, and the
// next one in the same namespace looks for them there.
func Readdress(path string) error {
	return within(path, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName(sandboxLink)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil // an empty network, as of tests
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", sandboxLink, err)
		}
		addrs, err := h.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", sandboxLink, err)
		}
		if len(addrs) > 0 {
			return nil
		}
		index, err := bring(h, sandboxLink, sandboxAddress, airlockAddress.Addr(), airlockMAC)
		if err != nil {
			return err
		}
		err = h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(everything), Gw: airlockAddress.Addr().AsSlice()})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the default route: %w", err)
		}
		return nil
	})
}

// bring brings up lo and the named link with its address, and tells it the
// other end's hardware address for good. It returns the link's index.
func bring(h *netlink.Handle, name string, own netip.Prefix, other netip.Addr, mac net.HardwareAddr) (int, error) {
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}
	if err := h.LinkSetUp(lo); err != nil {
		return 0, fmt.Errorf("bring up lo: %w", err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", name, err)
	}
	index := link.Attrs().Index
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: own.Addr().AsSlice(), Mask: net.CIDRMask(own.Bits(), 32)}}); err != nil {
		return 0, fmt.Errorf("give %s its address: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bring up %s: %w", name, err)
	}
	if err := h.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: other.AsSlice(), HardwareAddr: mac}); err != nil {
		return 0, fmt.Errorf("fix the neighbour of %s: %w", name, err)
	}
	return index, nil
}

// settle waits until the sandbox's link, which came up first, has seen its
// peer come up. The kernel tells it so a moment later, from a work queue, and
// drops what is sent before: a second lost to a TCP retransmission.
func settle(inside *netlink.Handle) error {
	for range 1000 {
		link, err := inside.LinkByName(sandboxLink)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		time.Sleep(time.Millisecond / 4)
	}
	return fmt.Errorf("the veth pair did not come up")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// pin keeps a namespace alive without a process, at path.
func pin(ns *os.File, path string) error {
	if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin a network namespace at %s: %w", path, err)
	}
	return nil
}

// pinned reports whether a namespace is pinned at path.
func pinned(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}

// unpin removes what build left in dir, whole or half-made, and dir itself.
// The kernel takes down the veth pair with the first of the two namespaces,
// shortly after.
func unpin(dir string, fault func(point string)) error {
	for _, name := range []string{airlockPin, sandboxPin} {
		path := filepath.Join(dir, name)
		for pinned(path) { // twice, if two servers pinned at once
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unpin %s: %w", path, err)
			}
			fault("airlock.unpinned")
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ground makes dir a shared tmpfs, if it is no mount point yet. Shared, because
// mount namespaces that are copied from this one (other daemons' ones) get a
// copy of each pin, and only where mount events propagate does unpin reach
// those copies too. A tmpfs, because pins are gone after a reboot anyway.
func ground(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var own, parent unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &own); err != nil {
		return err
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), 0, unix.STATX_MNT_ID, &parent); err != nil {
		return err
	}
	if own.Mnt_id == parent.Mnt_id {
		if err := unix.Mount(tmpfsName, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=16m"); err != nil {
			return isle.Errorf(isle.Unavailable, "mount a tmpfs at %s: %w", dir, err).WithHint("run isle server as root")
		}
	}
	return unix.Mount("", dir, "", unix.MS_SHARED, "")
}

// unground removes the mount that ground made, if nothing is in it.
func unground(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) { // proc_pid_mountinfo(5)
		fields := strings.Fields(line)
		if len(fields) > 4 && fields[4] == path && strings.Contains(line, " - tmpfs "+tmpfsName+" ") {
			return unix.Unmount(dir, 0)
		}
	}
	return nil
}

package local

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel counts by user it counts for the owner too: were that root,
// one environment could take all inotify instances of the machine.
func TestAUserNamespaceBelongsToItsEnvironmentAndNotToRoot(t *testing.T) {
	var m idMaps
	defer m.close()
	ns, err := m.get(testUIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var owner uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), unix.NS_GET_OWNER_UID, uintptr(unsafe.Pointer(&owner))); errno != 0 || owner != testUIDs {
		t.Errorf("it belongs to uid %d (%v)", owner, errno)
	}
	if os.Geteuid() != 0 {
		t.Errorf("the process became uid %d", os.Geteuid())
	}
	again, err := m.get(testUIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	names := make([]string, 2)
	for i, f := range []*os.File{ns, again} {
		if names[i], err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	if names[0] != names[1] {
		t.Errorf("services of one environment have the namespaces %v", names)
	}
}

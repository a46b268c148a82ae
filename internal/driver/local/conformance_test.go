package local

import (
	"os/exec"
	"syscall"
	"testing"

	"isle"
	"isle/internal/environment"
	"isle/internal/environment/drivertest"
)

func TestConformance(t *testing.T) {
	eachRuntime(t, func(t *testing.T, _ *bench) {
		name := t.Name()[len("TestConformance/"):]
		drivertest.Run(t, func(t *testing.T) drivertest.Bench {
			b := newBench(t, name)
			return drivertest.Bench{
				Driver: b.Driver, Isolation: b.class,
				Again: func(*testing.T) environment.Driver { return b.open(b.state, name) },
				Fill: func(_ *testing.T, l *environment.Launch) {
					f := b.launchOf(l.Instance)
					l.Layers, l.UIDBase, l.Init, l.Boot = f.Layers, f.UIDBase, f.Init, f.Boot
				},
				Spoil: func(l *environment.Launch) { l.Layers = []string{"/nowhere"} },
				End: func(t *testing.T, instance, launch isle.ID) {
					if b.class == classGvisor {
						if out, err := exec.Command(b.given.Runsc, "--root", b.runsc().Root, "kill", string(launch), "KILL").CombinedOutput(); err != nil {
							t.Fatalf("%v: %s", err, out)
						}
						return
					}
					if err := syscall.Kill(b.pid(instance, launch), syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				},
			}
		})
	})
}

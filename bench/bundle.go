package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// writeBundle writes two OCI bundles on the peers' root: one that says "ready"
// and ends, and one that sleeps, for exec.
func (b *bench) writeBundle() error {
	b.bundle = filepath.Join(b.peers, "bundle")
	for suffix, args := range map[string][]string{
		"":       {"/bin/busybox", "echo", "ready"},
		"-sleep": {"/bin/busybox", "sleep", "1000"},
	} {
		limit, pids, quota, period := int64(2<<30), int64(1024), int64(200000), uint64(100000)
		config := specs.Spec{
			Version: "1.0.2",
			Root:    &specs.Root{Path: b.root, Readonly: true},
			Process: &specs.Process{
				Args: args, Cwd: "/", NoNewPrivileges: true, Env: []string{"PATH=/bin"},
				Capabilities: &specs.LinuxCapabilities{},
			},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
				{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev"}},
			},
			Linux: &specs.Linux{
				CgroupsPath: "/isle-bench" + suffix,
				UIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 20, Size: 65536}},
				GIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 20, Size: 65536}},
				Resources: &specs.LinuxResources{
					Memory: &specs.LinuxMemory{Limit: &limit},
					Pids:   &specs.LinuxPids{Limit: pids},
					CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
				},
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
					{Type: specs.NetworkNamespace}, {Type: specs.UserNamespace},
				},
			},
		}
		if err := os.MkdirAll(b.bundle+suffix, 0o755); err != nil {
			return err
		}
		out, err := json.Marshal(config)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.bundle+suffix, "config.json"), out, 0o644); err != nil {
			return err
		}
	}
	return nil
}

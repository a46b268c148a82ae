package compose

// A rule is what is said of a key that has no equivalent.
type rule struct {
	kind       Kind
	reason, do string
}

// others are the keys of a service that are not done, whatever their value is.
func others() map[string]rule {
	drop := func(reason, do string) rule { return rule{Dropped, reason, do} }
	refuse := func(reason, do string) rule { return rule{Refused, reason, do} }
	cluster := drop("is about a machine that containers share, and limits hold for the environment as a whole", "")
	docker := drop("is for Docker's own tools", "")
	host := refuse("would share something of the machine, and an environment shares nothing", "remove it")
	device := refuse("services have no devices", "run what needs one where it is, and reach it through a connection")
	hook := refuse("there are no hooks", "put it into the command, or into a service that others depend on with service_completed_successfully")
	dns := drop("names are those of services, egress and connections: there is no other resolver", "name what it has to reach under x-isle: egress")
	return map[string]rule{
		"annotations": docker, "attach": docker, "labels": docker, "label_file": docker,
		"logging":           drop("output is kept by Isle", "read it with `isle logs`"),
		"stdin_open":        drop("a service has no standard input", "use `isle exec -t` or `isle shell`"),
		"tty":               drop("a service has no terminal", "use `isle exec -t` or `isle shell`"),
		"pull_policy":       drop("images are pinned by digest in the lock", "ask again with `isle lock --update`"),
		"platform":          drop("services run on this machine's own platform", ""),
		"stop_grace_period": drop("a service that is ended has the time that Isle gives all", ""),
		"stop_signal":       drop("a service is ended with SIGTERM", "have the command end at SIGTERM"),
		"shm_size":          drop("/dev/shm is there, within limits.memory", ""),
		"develop":           drop("changes are followed as a whole", "use `isle up --watch`"),
		"domainname":        docker, "mac_address": docker,
		"mem_reservation": cluster, "mem_swappiness": cluster, "memswap_limit": cluster, "oom_kill_disable": cluster, "oom_score_adj": cluster,
		"cpu_count": cluster, "cpu_percent": cluster, "cpu_period": cluster, "cpu_quota": cluster, "cpu_rt_period": cluster, "cpu_rt_runtime": cluster,
		"cpu_shares": cluster, "cpuset": cluster, "blkio_config": cluster, "storage_opt": cluster, "cgroup_parent": cluster,
		"ulimits": drop("limits of a process are Isle's own", ""),
		"dns":     dns, "dns_opt": dns, "dns_search": dns,
		"extra_hosts":    refuse("names lead to services, egress and connections only", "name the host under x-isle: egress, or use a connection (docs/gateway.md)"),
		"external_links": refuse("other projects are environments of their own", "reach one through a connection that names its environment (docs/gateway.md)"),
		"volumes_from":   refuse("volumes are not shared between services", "have one service hold the data, and others ask it over the network"),
		"cgroup":         host, "ipc": host, "pid": host, "userns_mode": host, "uts": host,
		"devices": device, "device_cgroup_rules": device, "gpus": device,
		"runtime": refuse("the runtime is chosen by class", "write x-isle: {isolation: gvisor} at the top for a kernel of the environment's own"), "isolation": refuse("is for Windows", "remove it"), "credential_spec": refuse("is for Windows", "remove it"),
		"group_add":      refuse("groups of a user are those of the image's /etc/group", "add the user to the group in the image"),
		"sysctls":        refuse("the kernel's settings are not a service's to set", "remove it"),
		"use_api_socket": refuse("nothing inside may have the machine's container engine", "remove it"),
		"post_start":     hook, "pre_stop": hook, "pre_start": hook,
		"models": refuse("there is no model runner", "reach one outside, under x-isle: egress"), "provider": refuse("nothing outside the file is run", "write the service out"),
	}
}

// buildOthers are the keys of a build that are not done.
func buildOthers() map[string]rule {
	network := rule{Refused, "steps reach what is recorded, or nothing", "remove it, or write none (docs/dockerfile.md)"}
	cache := rule{Dropped, "steps are cached by what they are made from", "use `isle build --no-cache` for once"}
	image := rule{Dropped, "is not kept in what is built", ""}
	return map[string]rule{
		"cache_from": cache, "cache_to": cache, "no_cache": cache, "pull": {Dropped, "images are pinned by digest in the lock", "ask again with `isle lock --update`"},
		"labels": image, "tags": image, "provenance": {Dropped, "each build has its provenance", ""}, "sbom": {Dropped, "the lock lists what is in the image", ""},
		"network": network, "extra_hosts": network,
		"platforms": {Dropped, "is built for this machine's own platform", ""}, "isolation": {Dropped, "is for Windows", ""}, "shm_size": {Dropped, "steps have Isle's own limits", ""}, "ulimits": {Dropped, "steps have Isle's own limits", ""},
		"dockerfile_inline":   {Refused, "the Dockerfile is a file of the project, which the lock pins", "write it into a file"},
		"additional_contexts": {Refused, "a build has one context", "put the files below it, or begin a stage with the image"},
		"ssh":                 {Refused, "what a step reaches with keys cannot be recorded", "take what it fetches into the build's folder, or fetch it over https with the recorded network"},
		"privileged":          {Refused, "no step has rights over the machine", "remove it"}, "entitlements": {Refused, "no step has rights over the machine", "remove it"},
	}
}

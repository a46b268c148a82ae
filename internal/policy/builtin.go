package policy

import (
	"slices"

	"isle"
)

// The built-in roles.
const (
	RoleAdmin      = "admin"
	RoleDeveloper  = "developer"
	RoleOperator   = "operator"
	RoleApprover   = "approver"
	RoleAuditor    = "auditor"
	RoleOpenEgress = "open-egress"
)

// builtinRoles are those that every policy has. They hold wildcards without a
// reason or an end because they are reviewed with the program.
func builtinRoles() []Role {
	everything := []Pattern{{Kind: "*", Name: "*"}}
	look := []isle.Action{isle.ActionEnvironmentList, isle.ActionEnvironmentRead, isle.ActionSnapshotRead, isle.ActionReleaseRead, isle.ActionPolicyRead, isle.ActionServerRead}
	images := []isle.Action{isle.ActionImageLock, isle.ActionImageBuild, isle.ActionImageRead, isle.ActionImageImport, isle.ActionImageExport}
	run := []isle.Action{isle.ActionEnvironmentLaunch, isle.ActionEnvironmentDown, isle.ActionEnvironmentExtend, isle.ActionEnvironmentLogs, isle.ActionEnvironmentVisit}
	copied := []isle.Action{isle.ActionEnvironmentFork, isle.ActionEnvironmentRestore}
	captured := []isle.Action{isle.ActionSnapshotCreate, isle.ActionSnapshotTag, isle.ActionSnapshotRemove, isle.ActionSnapshotExport, isle.ActionSnapshotImport}
	released := []isle.Action{isle.ActionReleaseCreate, isle.ActionReleaseExport}
	inside := []isle.Action{isle.ActionEnvironmentExec, isle.ActionEnvironmentCopy, isle.ActionEnvironmentDiff, isle.ActionEnvironmentPort}
	decide := []isle.Action{isle.ActionApprovalRead, isle.ActionApprovalDecide}
	sessions := []isle.Action{isle.ActionSessionRead, isle.ActionRecordingRead}
	var all []isle.Action
	for _, a := range grantable() {
		if a.Action != isle.ActionEgressConnect { // environments ask for it, and nobody in their name
			all = append(all, a.Action)
		}
	}
	role := func(name, does string, actions ...[]isle.Action) Role {
		return Role{Name: name, Does: does, Actions: slices.Concat(actions...), Resources: everything, Builtin: true, At: Position{File: "built in"}}
	}
	return []Role{
		role(RoleAdmin, "everything that people and machines do", all),
		role(RoleDeveloper, "builds, launches, enters and tears down environments, with their data", look, images, run, inside, copied, captured, released, []isle.Action{isle.ActionVolumeDelete, isle.ActionReleaseHistory}),
		role(RoleOperator, "runs environments and the server, and enters nothing", look, images, run, released, []isle.Action{isle.ActionServerCollect}),
		role(RoleApprover, "decides what an approval's rule leaves to approvers, and sees what there is to decide about", look, decide),
		role(RoleAuditor, "reads the audit log, the policy, and what was recorded of sessions", look, sessions, []isle.Action{isle.ActionAuditRead}),
		role(RoleOpenEgress, "of environments: reaches whatever their files ask for", []isle.Action{isle.ActionEgressConnect}),
	}
}

// defaultProtected are the protected stages where no document names any.
func defaultProtected() []string { return []string{"production"} }

// defaultStages is the order of stages where no document says one.
func defaultStages() []string { return []string{"testing", "staging", "production"} }

// builtinForbids are what no role lifts. A condition that could fail is written
// so that it forbids: Cedar skips a policy that errors.
const builtinForbids = `
@id("built in: a workload stays in its stage")
@message("a workload reaches only what is of its own stage")
forbid (principal is Workload, action, resource)
when { resource has stage && !(principal has stage && principal.stage == resource.stage) };

@id("built in: a session is in one stage")
@message("people and machines act in one stage at a time, and this session is in another")
forbid (principal, action, resource)
when { !(principal is Workload) && resource has stage && !(context has stage && context.stage == resource.stage) };

@id("built in: protected stages launch releases only")
@message("a protected stage launches releases only: isle release create makes one, isle up --release launches it")
forbid (principal, action == Action::"environment:launch", resource)
when { !(resource has protected && !resource.protected) && !(context has release && context.release) };
`

// Default is the document that a first start writes. Under it everything that
// worked before there was policy works for the local admin, and in testing.
const Default = `# The policy of this server. It was written by its first start: edit it, look at
# what would change with ` + "`isle apply -f FILE --dry-run`" + `, and apply it with
# ` + "`isle apply -f FILE`" + `. What nothing here grants is refused.
# The reference is docs/policy.md; the actions are in docs/actions.md.

bindings:
  # Whoever is root on this machine.
  - {role: admin, subjects: [human:root]}

  # Environments in testing reach what their files ask for under egress. To name
  # the destinations instead, remove this and grant egress:connect in a role.
  - {role: open-egress, subjects: [{stage: testing}]}

  # A team: members of the operating system's group. They need to be in the
  # group isle as well, to reach the server's socket.
  # - {role: developer, subjects: [group:developers], stages: [testing]}

# Stages that launch releases only, and that are entered only by roles that are
# bound with the stage's name.
protected: [production]
`

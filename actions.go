package isle

// An ActionInfo says what an Action is. docs/actions.md is made from these.
type ActionInfo struct {
	Action   Action
	Resource string // the kind of resource it is done to
	Does     string // one line, for people
	// Inside says that it reaches into what runs, or takes data out of it. In a
	// protected stage a role gives such an action only where its binding or
	// resource names that stage.
	Inside bool
	// Own says that only the server itself or an environment does it: it is in
	// the audit log, and no call asks for it.
	Own bool
}

// Actions lists every action, in the order of the reference.
func Actions() []ActionInfo {
	return []ActionInfo{
		{Action: ActionEnvironmentLaunch, Resource: "environment", Does: "launch an environment, or replace what changed in it: isle up, isle run"},
		{Action: ActionEnvironmentDown, Resource: "environment", Does: "tear an environment down: isle down, isle gc --branches"},
		{Action: ActionEnvironmentRead, Resource: "environment", Does: "see an environment, in isle ls, isle status and isle doors"},
		{Action: ActionEnvironmentExtend, Resource: "environment", Does: "move the end of an environment's life: isle ttl"},
		{Action: ActionEnvironmentLogs, Resource: "environment", Does: "read what services wrote: isle logs"},
		{Action: ActionEnvironmentExec, Resource: "environment", Does: "run a command inside: isle exec, isle shell, isle run", Inside: true},
		{Action: ActionEnvironmentCopy, Resource: "environment", Does: "copy files in or out: isle cp", Inside: true},
		{Action: ActionEnvironmentDiff, Resource: "environment", Does: "list what changed in volumes: isle diff", Inside: true},
		{Action: ActionEnvironmentPort, Resource: "environment", Does: "connect to a port inside: isle port-forward", Inside: true},
		{Action: ActionEnvironmentFork, Resource: "environment", Does: "copy what an environment or its snapshot holds into another: isle fork, isle run --from, isle up in a new branch. The other is launched too", Inside: true},
		{Action: ActionEnvironmentRestore, Resource: "environment", Does: "bring an environment back to a snapshot, in place of what it holds: isle restore", Inside: true},
		{Action: ActionVolumeCross, Resource: "environment", Does: "let a fork take an environment's data into another stage: isle fork --to-stage", Inside: true},
		{Action: ActionVolumeDelete, Resource: "volume", Does: "delete an environment's data: isle down --volumes"},
		{Action: ActionSnapshotCreate, Resource: "snapshot", Does: "capture an environment: isle snapshot", Inside: true},
		{Action: ActionSnapshotRead, Resource: "snapshot", Does: "see a snapshot, and verify it: isle snapshot ls, show, verify"},
		{Action: ActionSnapshotTag, Resource: "snapshot", Does: "give a snapshot a name, or take it away: isle snapshot tag, untag"},
		{Action: ActionSnapshotRemove, Resource: "snapshot", Does: "remove a snapshot with its data: isle snapshot rm"},
		{Action: ActionSnapshotExport, Resource: "snapshot", Does: "take a snapshot out, with data and memory: isle snapshot export", Inside: true},
		{Action: ActionSnapshotImport, Resource: "snapshot", Does: "take in a snapshot of the stage that it is of: isle snapshot import", Inside: true},
		{Action: ActionSnapshotTrust, Resource: "server", Does: "say whose snapshots are trusted with memory: isle snapshot trust"},
		{Action: ActionReleaseCreate, Resource: "release", Does: "seal and sign a release of a project: isle release create"},
		{Action: ActionReleaseRead, Resource: "release", Does: "see a release, verify it, and read how it was built: isle release ls, show, verify, attestation"},
		{Action: ActionReleaseRemove, Resource: "release", Does: "remove a release that nothing runs: isle release rm"},
		{Action: ActionReleaseExport, Resource: "release", Does: "take a release out with its attestations: isle release export"},
		{Action: ActionReleaseImport, Resource: "release", Does: "take in a release of the project: isle release import"},
		{Action: ActionReleasePromote, Resource: "release", Does: "point a stage at the release that the stage before it points at: isle promote", Inside: true},
		{Action: ActionReleaseSkip, Resource: "release", Does: "promote past a stage, in an emergency: isle promote --break-glass", Inside: true},
		{Action: ActionReleaseTrust, Resource: "server", Does: "say whose releases are launched: isle release trust"},
		{Action: ActionEgressConnect, Resource: "egress", Does: "reach a destination outside; an environment asks for it with egress in its file"},
		{Action: ActionEnvironmentList, Resource: "server", Does: "list environments: isle ls. It shows those that may be read"},
		{Action: ActionImageLock, Resource: "image", Does: "resolve packages and lock them: isle lock"},
		{Action: ActionImageBuild, Resource: "image", Does: "build images: isle build"},
		{Action: ActionImageRead, Resource: "image", Does: "ask which files the server has: part of isle up and isle build; see which images there are: isle image ls, inspect"},
		{Action: ActionImageImport, Resource: "image", Does: "send files, packages or images: part of isle up; isle lock import, isle image import"},
		{Action: ActionImagePull, Resource: "image", Does: "fetch an image from a registry: isle image pull, and part of isle lock, build and up where a file has image: with a registry's name. The image's name is without tag"},
		{Action: ActionImagePush, Resource: "image", Does: "give an image to a registry, under the name of the resource: isle image push. What is pushed is exported too"},
		{Action: ActionImageRemove, Resource: "image", Does: "take an image's name away: isle image rm"},
		{Action: ActionImageExport, Resource: "image", Does: "take locked packages or images out: isle lock export, isle image export, push"},
		{Action: ActionAuditRead, Resource: "audit", Does: "read the audit log: isle audit"},
		{Action: ActionAuditAccept, Resource: "audit", Does: "go on with a log that is older or another than its kept checkpoint: isle server --accept-rollback", Own: true},
		{Action: ActionPolicyRead, Resource: "policy", Does: "read and explain the policy: isle policy, isle role"},
		{Action: ActionPolicyApply, Resource: "policy", Does: "change the policy: isle apply"},
		{Action: ActionIdentityCreate, Resource: "identity", Does: "make a machine identity: isle identity create. The roles that it gets are a change of the policy"},
		{Action: ActionIdentityRead, Resource: "identity", Does: "see machine identities, their keys and last use: isle identity ls"},
		{Action: ActionIdentityRotate, Resource: "identity", Does: "give a machine identity a new key: isle identity rotate"},
		{Action: ActionIdentityRevoke, Resource: "identity", Does: "end a machine identity, or one key of anybody: isle identity revoke"},
		{Action: ActionIdentityTransfer, Resource: "identity", Does: "change who answers for a machine identity: isle identity owner"},
		{Action: ActionTokenCreate, Resource: "token", Does: "make a personal token for oneself: isle token create"},
		{Action: ActionTokenRead, Resource: "token", Does: "list one's own personal tokens: isle token ls"},
		{Action: ActionTokenRevoke, Resource: "token", Does: "end one's own personal token: isle token revoke"},
		{Action: ActionSecretSet, Resource: "secret", Does: "write a secret, or say where its value is: isle secret set"},
		{Action: ActionSecretRead, Resource: "secret", Does: "see which secrets there are, never a value: isle secret ls"},
		{Action: ActionSecretCheck, Resource: "secret", Does: "see whether a secret's value can be had: isle secret check"},
		{Action: ActionSecretDelete, Resource: "secret", Does: "remove a secret: isle secret rm"},
		{Action: ActionServerRead, Resource: "server", Does: "see the server and what the machine lacks: isle version, isle doctor"},
		{Action: ActionServerCollect, Resource: "server", Does: "free what nothing names: isle gc, isle cache prune"},
		{Action: ActionServerStop, Resource: "server", Does: "end the server; environments go on: isle server stop"},
		{Action: ActionConnectionOpen, Resource: "connection", Does: "open a session of a connection; an environment asks for it with uses in its file, others with isle connect", Inside: true},
		{Action: ActionPostgresSelect, Resource: "connection", Does: "read from a PostgreSQL database", Inside: true},
		{Action: ActionPostgresWrite, Resource: "connection", Does: "change rows of a PostgreSQL database: INSERT, UPDATE, DELETE, MERGE, TRUNCATE, COPY FROM, locks, sequences", Inside: true},
		{Action: ActionPostgresSchema, Resource: "connection", Does: "change the tables, views and functions of a PostgreSQL database", Inside: true},
		{Action: ActionPostgresAdmin, Resource: "connection", Does: "all else in a PostgreSQL database: roles, grants, settings, files and programs of the server, DO, CALL, functions that are not allowed, and what cannot be read with certainty", Inside: true},
		{Action: ActionHTTPRead, Resource: "connection", Does: "GET, HEAD and OPTIONS of an HTTP service", Inside: true},
		{Action: ActionHTTPWrite, Resource: "connection", Does: "every other request to an HTTP service", Inside: true},
		{Action: ActionApprovalRead, Resource: "connection", Does: "see what awaits approval: isle approvals", Inside: true},
		{Action: ActionApprovalDecide, Resource: "connection", Does: "approve or deny, as far as the approval's rule names one as approver: isle approvals approve", Inside: true},
		{Action: ActionAccessRequest, Resource: "connection", Does: "ask for a door or a role for a time: isle request"},
		{Action: ActionAccessBreakGlass, Resource: "connection", Does: "take access at once that is reviewed afterwards: isle break-glass", Inside: true},
		{Action: ActionSessionRead, Resource: "connection", Does: "see the sessions of a connection: isle sessions", Inside: true},
		{Action: ActionSessionEnd, Resource: "connection", Does: "end a session: isle sessions end", Inside: true},
		{Action: ActionRecordingRead, Resource: "connection", Does: "replay and search what was recorded of sessions: isle sessions replay", Inside: true},
		{Action: ActionSessionOpen, Resource: "connection", Does: "a session of a connection began", Own: true},
		{Action: ActionSessionClose, Resource: "connection", Does: "a session of a connection ended", Own: true},
		{Action: ActionRecordingKeep, Resource: "server", Does: "the hashes of what was recorded of sessions", Own: true},
		{Action: ActionRecordingDelete, Resource: "server", Does: "recordings whose time was over were deleted", Own: true},
		{Action: ActionServiceStart, Resource: "service", Does: "start a service", Own: true},
		{Action: ActionServiceReplace, Resource: "service", Does: "replace a service by a new launch", Own: true},
		{Action: ActionServiceRestart, Resource: "service", Does: "start a service again that ended", Own: true},
		{Action: ActionServiceExit, Resource: "service", Does: "a service ended", Own: true},
		{Action: ActionVolumeCreate, Resource: "volume", Does: "make a volume, part of a launch", Own: true},
		{Action: ActionIdentityUse, Resource: "identity", Does: "a credential was shown, and counted or not", Own: true},
		{Action: ActionIdentityEndAll, Resource: "identity", Does: "end every credential of before: part of accepting an older state", Own: true},
		{Action: ActionTokenIssue, Resource: "identity", Does: "an access token was given for a machine's key", Own: true},
		{Action: ActionSVIDIssue, Resource: "service", Does: "a service fetches the documents of its identity", Own: true},
		{Action: ActionSecretKey, Resource: "server", Does: "seal secrets under another key than before: a first start, isle server --new-key", Own: true},
		{Action: ActionIssuerRotate, Resource: "server", Does: "make new keys to sign identities with", Own: true},
		{Action: ActionServerReconcile, Resource: "server", Does: "make what is what should be, after a start", Own: true},
	}
}

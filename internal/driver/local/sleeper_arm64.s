#include "textflag.h"

// func cloneSleeper(flags, self uintptr) (pid int)
TEXT ·cloneSleeper(SB), NOSPLIT, $0-24
	MOVD flags+0(FP), R0
	MOVD self+8(FP), R9
	MOVD $0, R1         // no stack of its own: it uses none
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8       // clone
	SVC
	CBZ  R0, sleep
	MOVD R0, pid+16(FP)
	RET
sleep:
	MOVD $1, R0         // prctl(PR_SET_PDEATHSIG, SIGKILL)
	MOVD $9, R1
	MOVD $167, R8
	SVC
	MOVD $173, R8       // getppid: the parent may have ended before that
	SVC
	CMP  R9, R0
	BEQ  again
	MOVD $0, R0
	MOVD $94, R8        // exit_group
	SVC
again:
	MOVD $0, R0         // ppoll(nil, 0, nil, nil): for ever
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $73, R8
	SVC
	JMP  again

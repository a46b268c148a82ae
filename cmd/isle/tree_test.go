package main

import (
	"testing"

	islev1 "isle/internal/api/isle/v1"
)

func TestATreeIsDrawnBelowWhatItGrewFrom(t *testing.T) {
	got := drawTree([]*islev1.TreeNode{
		{Id: "1", Kind: "environment", Name: "shop", Phase: "running"},
		{Id: "2", Parent: "1", Kind: "environment", Name: "shop-f1", Gone: true},
		{Id: "sha256:0123456789abcdef", Parent: "2", Kind: "snapshot", Name: "shop-f1", Tags: []string{"good"}, Message: "before\nit"},
		{Id: "3", Parent: "1", Kind: "environment", Name: "shop-f2", Phase: "failed"},
		{Id: "4", Kind: "environment", Name: "other", Phase: "running"},
	})
	want := `shop  running
├─ shop-f1  gone
│  └─ snapshot 0123456789ab good  before it
└─ shop-f2  failed
other  running
`
	if got != want {
		t.Errorf("%s", got)
	}
}

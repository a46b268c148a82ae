package api

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
)

// upOf makes a call to its end.
func upOf(t *testing.T, c *Client, req *islev1.UpRequest) (*islev1.UpResult, error) {
	t.Helper()
	req.Source = source()
	s, err := c.Environments.Up(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for s.Receive() {
		if r := s.Msg().GetResult(); r != nil {
			return r, nil
		}
	}
	return nil, s.Err()
}

func TestWhatAClientSaysOfGitIsBounded(t *testing.T) {
	r := &rooms{}
	c := serveAs(t, r, newPolicy(t), Root)
	for name, req := range map[string]*islev1.UpRequest{
		"a branch that steers a terminal": {Branch: "a\x1b[2J"},
		"a branch without end":            {Branch: strings.Repeat("a", 1025)},
		"a commit that is none":           {Commit: "HEAD"},
		"a short commit":                  {Commit: "0123456789"},
		"a commit in capitals":            {Commit: strings.Repeat("A", 40)},
		"a path for a repository":         {Repository: "/home/ann/shop"},
		"too many parents":                {Branch: "b", ParentBranches: strings.Split("a,b,c,d,e,f,g,h,i", ",")},
		"a parent that is none":           {Branch: "b", ParentBranches: []string{""}},
		"a parent that steers":            {Branch: "b", ParentBranches: []string{"\n"}},
	} {
		if _, err := upOf(t, c, req); isle.CodeOf(err) != isle.Invalid || r.seen("Up") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALockThatChangesIsNotTheCommits(t *testing.T) {
	var got []environment.UpRequest
	r := &rooms{up: func(_ context.Context, req environment.UpRequest) (environment.UpResult, error) {
		got = append(got, req)
		return environment.UpResult{}, nil
	}}
	c := serveAs(t, r, newPolicy(t), Root)
	commit := strings.Repeat("a", 40)
	for _, req := range []*islev1.UpRequest{{Commit: commit, Branch: "main", Repository: strings.Repeat("b", 32)}, {}} { // neither has a lock
		if _, err := upOf(t, c, req); err != nil {
			t.Fatal(err)
		}
	}
	if u := got[0]; !u.Dirty || u.Commit != commit || u.Branch != "main" || u.Repository != strings.Repeat("b", 32) {
		t.Errorf("of a commit: %+v", u)
	}
	if got[1].Dirty {
		t.Error("without git there is nothing to be dirty of")
	}
}

func TestANewBranchBeginsAsACopyOfWhatItsCallerMayCopy(t *testing.T) {
	for _, x := range []struct {
		name, actions, resources string
		dirty                    bool
		forked, not              string
	}{
		{"may copy", "environment:fork, environment:launch", "'environment:shop', 'environment:shop-new'", false, "shop", ""},
		{"differs", "environment:fork, environment:launch", "'environment:shop', 'environment:shop-new'", true, "", "shop of branch main is not copied: the packages of web differ"},
		{"may not copy", "environment:launch", "'environment:shop', 'environment:shop-new'", false, "", "no environment of branch gone or main runs here that could be copied"},
		{"may not copy this one", "environment:fork, environment:launch", "'environment:shop-new'", false, "", "no environment of branch gone or main runs here that could be copied"},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := &rooms{}
			a := newPolicy(t)
			apply(t, a, "roles:\n  dev: {actions: ["+x.actions+"], resources: ["+x.resources+"]}\n"+
				"bindings:\n  - {role: admin, subjects: [human:root]}\n  - {role: dev, subjects: [human:ann]}\n")
			res, err := upOf(t, serveAs(t, r, a, "ann"), &islev1.UpRequest{
				Name: "shop-new", Branch: "new", Dirty: x.dirty, Repository: strings.Repeat("b", 32), ParentBranches: []string{"gone", "main"},
			})
			if err != nil {
				t.Fatal(err)
			}
			if res.GetForked() != x.forked || res.GetNotForked() != x.not || r.seen("Fork") != (x.forked != "") || !r.seen("Up") {
				t.Errorf("forked %q, not because %q, reached %v", res.GetForked(), res.GetNotForked(), r.reached)
			}
		})
	}
}

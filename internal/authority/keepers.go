package authority

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"isle"
	"isle/internal/policy"
)

// lasting is how long somebody must be able to change the policy to count as
// its keeper: a grant that ends in a minute locks everyone out in a minute.
const lasting = 7 * 24 * time.Hour

// keepers are those who may change the policy at a time, and are somebody.
func (a *Authority) keepers(set *policy.Set, at time.Time) []string {
	return slices.DeleteFunc(set.Keepers(at), func(who string) bool { return a.cfg.Reaches != nil && !a.cfg.Reaches(who) })
}

// warnings says what of a change may not be meant, a lock-out first.
func (a *Authority) warnings(actor isle.Actor, from, to *policy.Set, now time.Time) (out []string, locksOut bool) {
	keep, last := a.keepers(to, now), a.keepers(to, now.Add(lasting))
	switch all := to.Keepers(now); {
	case len(keep) == 0 && len(all) > 0:
		return []string{"nobody could change the policy any more: " + strings.Join(all, ", ") + " would have policy:apply, and there is nobody whom that names and who may speak to this server"}, true
	case len(keep) == 0:
		return []string{"nobody could change the policy any more: nobody who is named would have policy:apply"}, true
	case len(last) == 0:
		return []string{fmt.Sprintf("within %d days nobody could change the policy any more: the grants of %s end", int(lasting.Hours()/24), strings.Join(keep, ", "))}, true
	case !slices.Contains(keep, actor.String()) && slices.Contains(from.Keepers(now), actor.String()):
		out = append(out, "you, "+actor.String()+", could not change the policy any more; these could: "+strings.Join(keep, ", "))
	}
	for _, stage := range from.ProtectedStages() {
		if !to.Protected(stage) {
			out = append(out, "stage "+stage+" would be protected no more: whoever may launch or enter anything there could do so without a release, and without a binding that names it")
		}
	}
	before := from.Loose()
	for _, b := range to.Loose() {
		if !slices.Contains(before, b) {
			out = append(out, "role "+b+" may change the policy, which is of no stage, and so may give themselves every other stage")
		}
	}
	return out, false
}

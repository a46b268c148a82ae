package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/identity"
	"isle/internal/spec"
)

func newIdentity(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Make, list, rotate and revoke the identities of machines",
		Long: `A machine identity is for what runs outside: a CI job, a script, a server, an agent. It
has an owner, a purpose, an end and one stage, in which alone it acts. It proves itself by
an API key, of which the server keeps only a hash, or by a key pair of its own.`,
		Example: `  isle identity create ci --purpose "builds the shop" --expires 180d --role developer
  isle identity ls
  isle identity rotate ci
  isle identity revoke ci --reason "the pipeline moved"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newIdentityCreate(a), newIdentityLs(a), newIdentityShow(a), newIdentityRotate(a), newIdentityRevoke(a), newIdentityOwner(a))
	return cmd
}

// ending reads when something ends: how long from now (30d), a day, whose end is
// meant (UTC), or a time.
func ending(flag, s string) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, usagef("it needs an end").WithHint("say when with --%s, for example --%s 30d or --%s 2030-12-31", flag, flag, flag)
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return timestamppb.New(t), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return timestamppb.New(t.AddDate(0, 0, 1)), nil
	}
	d, err := spec.ParseDuration(s)
	if err != nil || d <= 0 {
		return nil, usagef("--%s %s: want how long from now (30d, 12h), a day (2030-12-31) or a time (2030-12-31T18:00:00Z)", flag, s)
	}
	return timestamppb.New(time.Now().Add(d)), nil
}

// publicKey reads a public key from a file, and sees to it that no other is sent
// anywhere.
func (a *app) publicKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	b, err := a.read(file, identity.MaxPublicKey)
	if err != nil {
		return nil, err
	}
	jwk, _, err := identity.ParsePublicKey(b)
	if err != nil {
		return nil, err
	}
	return []byte(jwk), nil
}

func newIdentityCreate(a *app) *cobra.Command {
	var req islev1.CreateIdentityRequest
	var expires, public string
	cmd := &cobra.Command{
		Use:   "create NAME --purpose TEXT --expires WHEN",
		Short: "Make a machine identity, and print its API key this once",
		Long: `Make a machine identity. Its API key is printed on standard output, this once: the server
keeps only its hash. With --public-key there is none: the machine signs assertions with
the private half (RFC 7523).

It acts in one stage alone. Each --role becomes a binding in the policy document "machines",
in that stage and until its end; giving roles takes the right to change the policy. It ends
366 days ahead at most, and each of its keys after 90 days: see "isle identity rotate".
A name is never used again.`,
		Example: `  isle identity create ci --purpose "builds the shop" --expires 180d --role developer
  isle identity create deploy --stage staging --purpose "deploys" --expires 2030-12-31 --owner human:ann --public-key deploy.pub`,
		Args: args(1, 1, "a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			req.Name = given[0]
			var err error
			if req.Purpose == "" {
				return usagef("it needs a purpose: one line that says what it is for").WithHint("give one with --purpose")
			}
			if req.Expires, err = ending("expires", expires); err != nil {
				return err
			}
			if req.PublicKey, err = a.publicKey(public); err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.CreateIdentity(cmd.Context(), connect.NewRequest(&req))
			if err != nil {
				return err
			}
			return a.showCreated(res.Msg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Owner, "owner", "", "person who answers for it: human:NAME (default you)")
	f.StringVar(&req.Purpose, "purpose", "", "what it is for: one line")
	f.StringVar(&expires, "expires", "", "its end: how long from now (30d), a day (its end, UTC) or a time")
	f.StringVar(&req.Stage, "stage", "", "the stage that it acts in (default "+isle.DefaultStage+")")
	f.StringArrayVar(&req.Roles, "role", nil, "role that it gets; may be given more than once")
	f.StringVar(&public, "public-key", "", "file with a public key of the machine's (PEM or JWK) in place of an API key; - reads standard input")
	return cmd
}

func (a *app) showCreated(m *islev1.CreateIdentityResponse) error {
	i := m.GetIdentity()
	if a.output == "json" {
		return a.json(struct {
			Identity identityJSON `json:"identity"`
			Secret   string       `json:"secret,omitempty"`
		}{identityView(i), m.GetSecret()})
	}
	fmt.Fprintf(a.stderr, "made machine:%s in stage %s, owned by %s, until %s\n", i.GetName(), i.GetStage(), clean(i.GetOwner()), localTime(i.GetExpires()))
	if len(i.GetRoles()) == 0 {
		fmt.Fprintf(a.stderr, "it has no role yet, and may do nothing: bind one with `isle apply --document machines`\n")
	}
	for _, k := range i.GetKeys() {
		a.showSecret(m.GetSecret(), k, "isle identity rotate "+i.GetName())
	}
	return nil
}

// showSecret prints a secret on standard output, alone, and what to do with it
// beside it.
func (a *app) showSecret(secret string, k *islev1.Key, next string) {
	if secret == "" {
		fmt.Fprintf(a.stderr, "its public key %s counts until %s; before then: %s\n", clean(k.GetHint()), localTime(k.GetExpires()), next)
		return
	}
	fmt.Fprintf(a.stderr, "this is shown once: put it where the secrets of its user are kept, not into code, an image or a variable of a shell.\nit counts until %s; before then: %s\n", localTime(k.GetExpires()), next)
	fmt.Fprintln(a.stdout, secret)
}

func localTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

func newIdentityLs(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List machine identities: owner, last use, and what should be looked at",
		Args:  args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.identities(cmd, "")
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(i *islev1.Identity) bool {
				return !all && (i.GetState() == identity.Revoked || i.GetState() == identity.Expired)
			})
			return showList(a, list, identityView, "name\tstage\towner\tends\tlast used\troles\tlook at", func(i *islev1.Identity) []string {
				look := strings.Join(i.GetFlags(), ", ")
				if i.GetState() != identity.Active {
					look = i.GetState()
				}
				return []string{i.GetName(), i.GetStage(), i.GetOwner(), until(i.GetExpires()), lastUse(i.GetLastUsed(), i.GetLastSource()), strings.Join(i.GetRoles(), ","), look}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "those too that have expired or were revoked")
	return cmd
}

func (a *app) identities(cmd *cobra.Command, name string) ([]*islev1.Identity, error) {
	c, err := a.connect(cmd.Context())
	if err != nil {
		return nil, err
	}
	res, err := c.Identities.ListIdentities(cmd.Context(), connect.NewRequest(&islev1.ListIdentitiesRequest{Name: name}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetIdentities(), nil
}

func until(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	if d := time.Until(t.AsTime()); d > 0 {
		return "in " + span(d)
	}
	return "ended"
}

func lastUse(t *timestamppb.Timestamp, source string) string {
	if t == nil {
		return "never"
	}
	return span(time.Since(t.AsTime())) + " ago, from " + source
}

func newIdentityShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a machine identity and its keys",
		Args:  args(1, 1, "a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if given[0] == "" {
				return usagef("the name is empty")
			}
			list, err := a.identities(cmd, given[0])
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return isle.Errorf(isle.NotFound, "there is no machine identity %q", clean(given[0]))
			}
			i := list[0]
			if a.output == "json" {
				return a.json(identityView(i))
			}
			state := i.GetState()
			if len(i.GetFlags()) > 0 {
				state += ": " + strings.Join(i.GetFlags(), ", ")
			}
			for _, line := range [][2]string{
				{"name", i.GetName()}, {"state", state}, {"stage", i.GetStage()}, {"owner", i.GetOwner()}, {"purpose", i.GetPurpose()},
				{"roles", strings.Join(i.GetRoles(), ", ")}, {"made", localTime(i.GetCreated()) + " by " + i.GetCreatedBy()}, {"ends", localTime(i.GetExpires())},
				{"revoked", localTime(i.GetRevoked())}, {"stops", localTime(i.GetStops())}, {"used", lastUse(i.GetLastUsed(), i.GetLastSource())},
			} {
				if line[1] != "" {
					fmt.Fprintf(a.stdout, "%-9s%s\n", line[0], clean(line[1]))
				}
			}
			fmt.Fprintln(a.stdout)
			return a.showKeys(i.GetKeys())
		},
	}
}

func (a *app) showKeys(keys []*islev1.Key) error {
	var rows [][]string
	for _, k := range keys {
		rows = append(rows, []string{k.GetId(), k.GetKind(), k.GetHint(), k.GetState(), localTime(k.GetExpires()), lastUse(k.GetLastUsed(), k.GetLastSource())})
	}
	return table(a.stdout, "key\tkind\tbegins with\tstate\tends\tlast used", rows)
}

func newIdentityRotate(a *app) *cobra.Command {
	var overlap, public string
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a machine identity a new key, and end those before it after an overlap",
		Example: `  isle identity rotate ci                   the key of before counts for 24 hours more
  isle identity rotate ci --overlap 0s      it ends at once`,
		Args: args(1, 1, "a name"),
		RunE: func(cmd *cobra.Command, given []string) error {
			d, err := spec.ParseDuration(overlap)
			if err != nil {
				return usagef("--overlap %s: %v", overlap, err)
			}
			key, err := a.publicKey(public)
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Identities.RotateKey(cmd.Context(), connect.NewRequest(&islev1.RotateKeyRequest{Name: given[0], Overlap: durationpb.New(d), PublicKey: key}))
			if err != nil {
				return err
			}
			m := res.Msg
			if a.output == "json" {
				return a.json(struct {
					Key       keyJSON    `json:"key"`
					Secret    string     `json:"secret,omitempty"`
					OthersEnd *time.Time `json:"others_end"`
				}{keyView(m.GetKey()), m.GetSecret(), at(m.GetOthersEnd())})
			}
			if d == 0 {
				fmt.Fprintf(a.stderr, "a new key of machine:%s; those of before have ended\n", clean(given[0]))
			} else {
				fmt.Fprintf(a.stderr, "a new key of machine:%s; those of before end by %s\n", clean(given[0]), localTime(m.GetOthersEnd()))
			}
			a.showSecret(m.GetSecret(), m.GetKey(), "isle identity rotate "+given[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&overlap, "overlap", "24h", "how long the keys of before go on; 0s ends them at once")
	cmd.Flags().StringVar(&public, "public-key", "", "file with the new public key (PEM or JWK) in place of an API key; - reads standard input")
	return cmd
}

func newIdentityRevoke(a *app) *cobra.Command {
	var key, reason string
	cmd := &cobra.Command{
		Use:   "revoke NAME | --key ID",
		Short: "End a machine identity, or one key of anybody, at once and for ever",
		Example: `  isle identity revoke ci --reason "the pipeline moved"
  isle identity revoke --key 06fhq2m5b0s9v1k3t7c8d4e6ga --reason "found in a log"`,
		Args: args(0, 1, "a name, or --key and none"),
		RunE: func(cmd *cobra.Command, given []string) error {
			if (key == "") == (len(given) == 0) {
				return usagef("say either the name of a machine identity or a key").WithHint("isle identity revoke NAME, or isle identity revoke --key ID")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if key != "" {
				res, err := c.Identities.RevokeKey(cmd.Context(), connect.NewRequest(&islev1.RevokeKeyRequest{Id: key, Reason: reason}))
				if err != nil {
					return err
				}
				return a.showEnded(res.Msg.GetKey())
			}
			res, err := c.Identities.RevokeIdentity(cmd.Context(), connect.NewRequest(&islev1.RevokeIdentityRequest{Name: given[0], Reason: reason}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(identityView(res.Msg.GetIdentity()))
			}
			fmt.Fprintf(a.stdout, "machine:%s is revoked, with its keys and the roles of the document machines\n", clean(res.Msg.GetIdentity().GetName()))
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "end this key alone")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log: one line")
	return cmd
}

func (a *app) showEnded(k *islev1.Key) error {
	if a.output == "json" {
		return a.json(keyView(k))
	}
	_, err := fmt.Fprintf(a.stdout, "the key %s of %s is revoked\n", k.GetId(), clean(k.GetHolder()))
	return err
}

func newIdentityOwner(a *app) *cobra.Command {
	var to, left, grace string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "owner NAME --to human:NAME | owner --left human:NAME",
		Short: "Give a machine identity another owner, or say that an owner has left",
		Long: `Give a machine identity another owner; or say that a person has left: the machine identities
that they own stop after the grace period unless they get another owner, and their personal
tokens end at once. The server notes by itself when the operating system does not know an
owner any more.`,
		Example: `  isle identity owner ci --to human:bob
  isle identity owner --left human:ann --dry-run
  isle identity owner --left human:ann --grace 3d`,
		Args: args(0, 1, "a name with --to, or --left and none"),
		RunE: func(cmd *cobra.Command, given []string) error {
			switch {
			case (to == "") == (left == ""), (to != "") != (len(given) == 1):
				return usagef("say either the new owner of one machine identity or who has left").
					WithHint("isle identity owner NAME --to human:NAME, or isle identity owner --left human:NAME")
			case left == "" && (dryRun || cmd.Flags().Changed("grace")):
				return usagef("--grace and --dry-run go with --left")
			}
			d, err := spec.ParseDuration(grace)
			if err != nil {
				return usagef("--grace %s: %v", grace, err)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if left != "" {
				res, err := c.Identities.OwnerLeft(cmd.Context(), connect.NewRequest(&islev1.OwnerLeftRequest{Owner: left, Grace: durationpb.New(d), DryRun: dryRun}))
				if err != nil {
					return err
				}
				return a.showLeft(left, dryRun, res.Msg)
			}
			res, err := c.Identities.SetOwner(cmd.Context(), connect.NewRequest(&islev1.SetOwnerRequest{Name: given[0], Owner: to}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(identityView(res.Msg.GetIdentity()))
			}
			fmt.Fprintf(a.stdout, "machine:%s is owned by %s\n", clean(given[0]), clean(to))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "the new owner: human:NAME")
	f.StringVar(&left, "left", "", "person who has left: human:NAME")
	f.StringVar(&grace, "grace", "7d", "how long their machine identities go on")
	f.BoolVar(&dryRun, "dry-run", false, "say what would stop, and change nothing")
	return cmd
}

func (a *app) showLeft(who string, dryRun bool, m *islev1.OwnerLeftResponse) error {
	if a.output == "json" {
		out := struct {
			Identities []identityJSON `json:"identities"`
			Tokens     []keyJSON      `json:"tokens"`
			DryRun     bool           `json:"dry_run"`
		}{[]identityJSON{}, keyViews(m.GetTokens()), dryRun}
		for _, i := range m.GetIdentities() {
			out.Identities = append(out.Identities, identityView(i))
		}
		return a.json(out)
	}
	stops, ends := "stops", "has ended"
	if dryRun {
		stops, ends = "would stop", "would end"
	}
	for _, i := range m.GetIdentities() {
		fmt.Fprintf(a.stdout, "machine:%s %s %s, unless it gets another owner\n", clean(i.GetName()), stops, localTime(i.GetStops()))
	}
	for _, k := range m.GetTokens() {
		fmt.Fprintf(a.stdout, "the personal token %s (%s) %s\n", k.GetId(), clean(k.GetPurpose()), ends)
	}
	if len(m.GetIdentities())+len(m.GetTokens()) == 0 {
		fmt.Fprintf(a.stdout, "%s has nothing that this would end\n", clean(who))
	}
	if dryRun {
		fmt.Fprintln(a.stdout, "nothing is changed")
	}
	return nil
}

type identityJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	State      string     `json:"state"`
	Stage      string     `json:"stage"`
	Owner      string     `json:"owner"`
	Purpose    string     `json:"purpose"`
	Roles      []string   `json:"roles"`
	Created    *time.Time `json:"created"`
	CreatedBy  string     `json:"created_by"`
	Expires    *time.Time `json:"expires"`
	Revoked    *time.Time `json:"revoked,omitempty"`
	OwnerLeft  *time.Time `json:"owner_left,omitempty"`
	Stops      *time.Time `json:"stops,omitempty"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	LastSource string     `json:"last_source,omitempty"`
	Flags      []string   `json:"flags"`
	Keys       []keyJSON  `json:"keys"`
}

type keyJSON struct {
	ID         string     `json:"id"`
	Kind       string     `json:"kind"`
	Holder     string     `json:"holder"`
	Hint       string     `json:"hint"`
	State      string     `json:"state"`
	Purpose    string     `json:"purpose,omitempty"`
	Stage      string     `json:"stage,omitempty"`
	Created    *time.Time `json:"created"`
	Expires    *time.Time `json:"expires"`
	Revoked    *time.Time `json:"revoked,omitempty"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	LastSource string     `json:"last_source,omitempty"`
}

func keyView(k *islev1.Key) keyJSON {
	return keyJSON{
		k.GetId(), k.GetKind(), k.GetHolder(), k.GetHint(), k.GetState(), k.GetPurpose(), k.GetStage(),
		at(k.GetCreated()), at(k.GetExpires()), at(k.GetRevoked()), at(k.GetLastUsed()), k.GetLastSource(),
	}
}

func keyViews(keys []*islev1.Key) []keyJSON {
	out := []keyJSON{}
	for _, k := range keys {
		out = append(out, keyView(k))
	}
	return out
}

func identityView(i *islev1.Identity) identityJSON {
	v := identityJSON{
		ID: i.GetId(), Name: i.GetName(), State: i.GetState(), Stage: i.GetStage(), Owner: i.GetOwner(), Purpose: i.GetPurpose(),
		Roles: i.GetRoles(), Created: at(i.GetCreated()), CreatedBy: i.GetCreatedBy(), Expires: at(i.GetExpires()), Revoked: at(i.GetRevoked()),
		OwnerLeft: at(i.GetOwnerLeft()), Stops: at(i.GetStops()), LastUsed: at(i.GetLastUsed()), LastSource: i.GetLastSource(),
		Flags: i.GetFlags(), Keys: keyViews(i.GetKeys()),
	}
	for _, s := range []*[]string{&v.Roles, &v.Flags} {
		if *s == nil {
			*s = []string{}
		}
	}
	return v
}

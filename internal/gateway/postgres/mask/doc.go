// Package mask lets the masked columns of a PostgreSQL connection leave only as
// their masks show them.
//
// A mask names a column and says how it is shown. A use is what a statement
// does with a column; the one use that every mask allows is plain output, a
// column alone in a select list or in RETURNING. Lineage is where the columns of
// a result come from: through subqueries, WITH, joins and views. A Plan is what
// lineage says of a statement before it is sent; every use that is not plain
// output is refused, wherever in the tree it stands, unless the mask allows it
// or a rule of the connection lifts it. Rows are the rewriting of one result:
// what the Plan found masked, and what PostgreSQL itself says is from a masked
// column (table and attribute in RowDescription), independently of each other.
// The catalog is what is known of the database's tables; where it does not know
// what a statement names, the statement is refused.
//
// How the wire uses it, for one connection and for each client's session:
//
//	masks, err := mask.New(mask.Config{…})      // once; kept as long as the policy says the same
//	session := masks.Begin(query)               // query runs on a side session of the same role
//	plan, err := session.Plan(ctx, statement)   // before anything is sent; of each part of a simple query
//	plan, err = session.Check(ctx, plan)        // before each Execute of what was planned at Parse
//	rows, err := session.Rows(ctx, plan, fields, formats) // at each RowDescription
//	out, err = rows.Row(out[:0], message)       // of each DataRow, unless rows.Pass()
//	out, changed := plan.Scrub(out[:0], message) // of each ErrorResponse and NoticeResponse
//	text, params = plan.Redact(text, params)    // of what is recorded
//	masks.Copy(data)                            // of each CopyData that goes out
//	session.Idle()                              // at each ReadyForQuery that says 'I'
//
// A result that is not described (Execute without Describe) has to be: the wire
// asks for the description itself where there are masks. Where Rows or Row give an
// error nothing of the result is sent and the session is ended.
//
// What no plan sees is inside functions, procedures, triggers and rules that are
// in the database already. The allow-list of functions and the login role's
// rights stand before them.
package mask

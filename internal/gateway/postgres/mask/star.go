package mask

// star is * or name.* in a select list: the columns in the order that they have
// in FROM.
func (a *analysis) star(fields []string, sc *scope) (out result) {
	if len(fields) == 0 {
		for _, item := range sc.items {
			out.columns = append(out.columns, item.columns...)
			out.open = out.open || item.open
			if a.tooWide(len(out.columns)) {
				return result{}
			}
		}
	} else {
		for _, r := range a.starRelations(fields, sc) {
			out = result{columns: r.columns, open: r.open}
		}
	}
	if out.masked() != nil {
		a.touches = true
	}
	return out
}

// starRelations are the relations that * or name.* means in an expression.
func (a *analysis) starRelations(fields []string, sc *scope) []*relation {
	if len(fields) == 0 {
		return sc.relations
	}
	if r := sc.relation(fields[len(fields)-1]); r != nil {
		return []*relation{r}
	}
	if sc.anyMasked() {
		a.strange(fields)
	}
	return nil
}

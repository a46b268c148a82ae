package spec

import "isle/internal/problem"

// What is wrong in an environment file is said in the words of package problem.
type (
	Problem   = problem.Problem
	FileError = problem.FileError
)

// nearest is problem.Nearest.
func nearest(word string, candidates []string) (best string, near bool) {
	return problem.Nearest(word, candidates)
}

// clip is problem.Clip.
func clip(s string) string { return problem.Clip(s) }

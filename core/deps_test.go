package core_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The packages under core are what a program imports when it wants no
// dependencies, and each is usable without the others.
func TestCoreNeedsTheStandardLibraryAlone(t *testing.T) {
	const module = "github.com/surgewall/surgewall"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Deps}} {{.}}{{end}}`, module+"/core/...").Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Greater(t, len(lines), 1)
	for _, line := range lines {
		pkg, deps, _ := strings.Cut(line, " ")
		for dep := range strings.FieldsSeq(deps) {
			if first, _, _ := strings.Cut(dep, "/"); !strings.Contains(first, ".") || first == "vendor" {
				continue // the standard library's import paths have no domain
			}
			ours := dep == module+"/core" || strings.HasPrefix(dep, module+"/core/internal/")
			require.True(t, ours, "%s depends on %s", pkg, dep)
		}
	}
}

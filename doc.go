// Package surgewall holds the documentation of the module; its packages hold
// the code. Begin with package core, and with README.md.
package surgewall

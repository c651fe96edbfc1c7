// Package lint holds checks of the source itself, as tests.
package lint

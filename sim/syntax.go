package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// SyntaxError says where a scenario cannot be read, why, and what was expected there.
type SyntaxError struct {
	File         string // empty if the text came from none
	Line, Column int    // from 1; a column of 0 is the whole line
	Reason       string
	Expected     string
	Meant        string // what was probably meant; may be empty
}

func (e *SyntaxError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	fmt.Fprintf(&b, "line %d", e.Line)
	if e.Column > 0 {
		fmt.Fprintf(&b, ", column %d", e.Column)
	}
	b.WriteString(": " + e.Reason)
	if e.Meant != "" {
		fmt.Fprintf(&b, " (did you mean %q?)", e.Meant)
	}
	return b.String() + "; expected: " + e.Expected
}

// word is one of a line, and the column where it begins.
type word struct {
	text   string
	column int
}

// words cuts a line at white space and leaves its comment out.
func words(line string) []word {
	text, _, _ := strings.Cut(line, "#")
	var all []word
	begin := -1
	for i, r := range text + " " {
		blank := r == ' ' || r == '\t' || r == '\r'
		switch {
		case !blank && begin < 0:
			begin = i
		case blank && begin >= 0:
			all = append(all, word{text[begin:i], len([]rune(text[:begin])) + 1})
			begin = -1
		}
	}
	return all
}

// reader takes the words of one line; the first mistake stays.
type reader struct {
	file  string
	line  int
	words []word
	last  word // the one taken last
	form  string
	err   *SyntaxError
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = &SyntaxError{File: r.file, Line: r.line, Column: r.last.column, Reason: fmt.Sprintf(format, args...), Expected: r.form}
	}
}

// failMeant is fail, with the nearest of some words.
func (r *reader) failMeant(got string, known []string, format string, args ...any) {
	if r.err == nil {
		r.fail(format, args...)
		r.err.Meant = nearest(got, known)
	}
}

// next tells which word comes next, without taking it; "" at the end.
func (r *reader) next() string {
	if len(r.words) == 0 {
		return ""
	}
	return r.words[0].text
}

func (r *reader) word() string {
	if len(r.words) == 0 {
		r.last.column += len([]rune(r.last.text)) + 1
		r.last.text = ""
		r.fail("the line ends too early")
		return ""
	}
	r.last = r.words[0]
	r.words = r.words[1:]
	return r.last.text
}

func (r *reader) keyword(want string) {
	if got := r.word(); got != want {
		r.fail("%q stands where %q belongs", got, want)
	}
}

// optional takes a word if it comes next.
func (r *reader) optional(want string) bool {
	if r.next() != want {
		return false
	}
	r.word()
	return true
}

func (r *reader) number(least, most int) int {
	w := r.word()
	n, err := strconv.Atoi(w)
	if err != nil || n < least || n > most {
		r.fail("%q is no whole number from %d to %d", w, least, most)
		return least
	}
	return n
}

// duration reads one of at least least.
func (r *reader) duration(least time.Duration) time.Duration {
	w := r.word()
	d, err := time.ParseDuration(w)
	switch {
	case err != nil:
		r.fail("%q is no duration like 500ms, 30s or 1h30m", w)
	case d < least:
		r.fail("%s is less than %s", w, least)
	case d > longest:
		r.fail("%s is more than %s", w, longest)
	default:
		return d
	}
	return least
}

// rate reads a number, or a percentage.
func (r *reader) rate() float64 {
	w := r.word()
	number, percent := strings.CutSuffix(w, "%")
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f != f || f > 1e6 || f < -1e6 {
		r.fail("%q is no number like 0.3 or 30%%", w)
		return 0
	}
	if percent {
		f /= 100
	}
	return f
}

func (r *reader) quantity() resource.Quantity {
	w := r.word()
	q, err := resource.ParseQuantity(w)
	if err != nil || q.Sign() < 0 {
		r.fail("%q is no quantity like 250m or 1Gi", w)
	}
	return q
}

func (r *reader) end() error {
	if len(r.words) > 0 {
		rest := r.words
		r.word()
		texts := make([]string, len(rest))
		for i, w := range rest {
			texts[i] = w.text
		}
		r.fail("%q is too much", strings.Join(texts, " "))
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

// nearest is the known word that differs from another in the fewest letters, if those are few.
func nearest(got string, known []string) string {
	best, least := "", max(1, len(got)/3)
	for _, k := range known {
		if d := distance(got, k); d <= least && (best == "" || d < least) {
			best, least = k, d
		}
	}
	return best
}

// distance is how many letters must be put in, taken out or changed, or neighbours exchanged, to make one word of the other.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

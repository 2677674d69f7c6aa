package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Row is one line of the table.
type Row struct {
	Figure string `json:"figure"` // for --only
	What   string `json:"what"`
	Unit   string `json:"unit"`
	// Measured is ours, Reference what it is held against, named by Against. An empty Against means that there is none.
	Measured  Sample `json:"measured"`
	Against   string `json:"against,omitempty"`
	Reference Sample `json:"reference"`
	Aim       Aim    `json:"aim"`
	// Load is the machine's load average before the measurement, which began At.
	Load float64   `json:"load"`
	At   time.Time `json:"at"`
}

// Sample is a set of measurements, told by two percentiles (nearest rank) in the row's unit.
type Sample struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	N   int     `json:"n"`
}

// Aim is what a row should reach; zero fields say nothing.
type Aim struct {
	// Ratio is the most that the measured p50 may be, in reference p50s, and Most the most it may be in the row's unit.
	Ratio float64 `json:"ratio,omitempty"`
	Most  float64 `json:"most,omitempty"`
	// Least is the least it may be, and LeastRatio that in reference p50s.
	Least      float64 `json:"least,omitempty"`
	LeastRatio float64 `json:"leastRatio,omitempty"`
	// Tail is the most that the measured p99 may be, in reference p99s.
	Tail float64 `json:"tail,omitempty"`
}

// sampleOf sorts values, which must not be empty, and takes the percentiles.
func sampleOf(values []float64) Sample {
	sorted := slices.Sorted(slices.Values(values))
	return Sample{P50: percentile(sorted, 50), P99: percentile(sorted, 99), N: len(sorted)}
}

// percentile is the nearest-rank percentile of sorted values; NaN of none.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// milliseconds and seconds make samples of times.
func milliseconds(times []time.Duration) Sample { return scaled(times, time.Millisecond) }
func seconds(times []time.Duration) Sample      { return scaled(times, time.Second) }

func scaled(times []time.Duration, unit time.Duration) Sample {
	values := make([]float64, len(times))
	for i, t := range times {
		values[i] = float64(t) / float64(unit)
	}
	return sampleOf(values)
}

// Ratio is measured ÷ reference at the p50; 0 without a reference.
func (r Row) Ratio() float64 {
	if r.Against == "" || r.Reference.P50 == 0 {
		return 0
	}
	return r.Measured.P50 / r.Reference.P50
}

// Met tells whether the aim is reached. A row without an aim has reached it.
func (r Row) Met() bool {
	return (r.Aim.Ratio == 0 || r.Ratio() <= r.Aim.Ratio) &&
		(r.Aim.Most == 0 || r.Measured.P50 <= r.Aim.Most) &&
		(r.Aim.Least == 0 || r.Measured.P50 >= r.Aim.Least) &&
		(r.Aim.LeastRatio == 0 || r.Ratio() >= r.Aim.LeastRatio) &&
		(r.Aim.Tail == 0 || r.Measured.P99 <= r.Aim.Tail*r.Reference.P99)
}

// printTable prints all rows and the command that takes each figure alone.
func printTable(out io.Writer, rows []Row) error {
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tMEASURED p50 / p99\tREFERENCE IN THE SAME RUN p50 / p99\tRATIO\tAIM\t\tLOAD\tCOMMAND")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%.1f\tpeer bench --only %s\n",
			r.What, r.Measured.text(r.Unit), r.reference(), r.ratio(), r.Aim.text(r.Unit), r.verdict(), r.Load, r.Figure)
	}
	return table.Flush()
}

func (s Sample) text(unit string) string {
	if s.N <= 1 || s.P50 == s.P99 {
		return fmt.Sprintf("%s %s", number(s.P50), unit)
	}
	return fmt.Sprintf("%s / %s %s (%d)", number(s.P50), number(s.P99), unit, s.N)
}

func (r Row) reference() string {
	if r.Against == "" {
		return "–"
	}
	return r.Against + ": " + r.Reference.text(r.Unit)
}

func (r Row) ratio() string {
	if r.Ratio() == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f×", r.Ratio())
}

func (r Row) verdict() string {
	switch {
	case r.Aim == Aim{}:
		return ""
	case r.Met():
		return "met"
	}
	return "MISSED"
}

func (a Aim) text(unit string) string {
	var parts []string
	if a.Ratio != 0 {
		parts = append(parts, fmt.Sprintf("≤ %s×", number(a.Ratio)))
	}
	if a.Most != 0 {
		parts = append(parts, fmt.Sprintf("≤ %s %s", number(a.Most), unit))
	}
	if a.Least != 0 {
		parts = append(parts, fmt.Sprintf("≥ %s %s", number(a.Least), unit))
	}
	if a.LeastRatio != 0 {
		parts = append(parts, fmt.Sprintf("≥ %s×", number(a.LeastRatio)))
	}
	if a.Tail != 0 {
		parts = append(parts, fmt.Sprintf("p99 ≤ %s×", number(a.Tail)))
	}
	if len(parts) == 0 {
		return "–"
	}
	return strings.Join(parts, ", ")
}

// number prints three digits that count, and no more zeros than needed.
func number(v float64) string {
	switch {
	case v >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

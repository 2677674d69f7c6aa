package report

import (
	_ "embed"
	"html/template"
	"io"

	"shoal/sim"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{"short": short}).Parse(page))

// mostEntries bounds the timeline of a report; a browser should still like it.
const mostEntries = 2000

// HTML writes a report with a picture, as one page that needs nothing else. version is that of the program which simulated.
func HTML(w io.Writer, r *sim.Result, version string) error {
	entries := Timeline(r)
	more := max(0, len(entries)-mostEntries)
	return pageTemplate.Execute(w, struct {
		Name, Title, Cluster, Version, Text string
		Stopped                             bool
		Failed                              int
		Checks                              []sim.Check
		Figures                             []Figure
		Picture                             Picture
		Timeline                            []Entry
		More                                int
	}{
		r.Scenario.Name, r.Scenario.Title, Describe(r.Scenario), version, r.Scenario.Text(), r.Checks == nil, len(r.Failed()), r.Checks,
		Figures(r), Draw(r), entries[:len(entries)-more], more,
	})
}

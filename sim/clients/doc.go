// Package clients are users of a cluster's API who write down what they ask, what they are answered and what their watches deliver: the
// recordings that sim/history judges.
//
// They speak plain HTTP over whatever connections they are given, so the same ones use peers in network namespaces (cli/robustness) and
// peers under virtual time (sim/fleet). They repeat nothing by themselves: a recording must know of each request. What they do is drawn from
// a seed.
package clients

package checkpoint_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkPause measures how long an application that counts all the time
// stands still for a capture, beside runsc's own checkpoint of the same sandbox,
// in turns: the longest time between two numbers.
func BenchmarkPause(b *testing.B) {
	for _, size := range []int{50, 100} {
		w := newWorld(b)
		source := w.sandbox("source", testUIDs, size)
		source.start()
		pause := func(capture func(image string)) time.Duration {
			if err := os.WriteFile(filepath.Join(source.out("app"), "quiet"), nil, 0o644); err != nil {
				b.Fatal(err)
			}
			for range 2 {
				source.goesOn()
			}
			image := source.image()
			capture(image)
			if err := os.RemoveAll(image); err != nil {
				b.Fatal(err)
			}
			return source.goesOn().Gap
		}
		b.Run(map[int]string{50: "50MB", 100: "100MB"}[size], func(b *testing.B) {
			var ours, runscs time.Duration
			for b.Loop() {
				ours += pause(func(image string) {
					if _, err := source.capture(image, nil).Run(b.Context()); err != nil {
						b.Fatal(err)
					}
				})
				runscs += pause(func(image string) {
					source.run("checkpoint", "--leave-running", "--image-path", image, source.id("top"))
				})
			}
			b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms-paused")
			b.ReportMetric(float64(runscs.Milliseconds())/float64(b.N), "ms-paused-by-runsc")
			b.ReportMetric(float64(ours)/float64(runscs), "ratio")
		})
	}
}

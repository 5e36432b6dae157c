// A browser starts no worker from a file on disk. There, a hidden frame does the work of the search.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this._frame = document.createElement("iframe")
      this._frame.hidden = true
      this._waiting = []
      document.body.appendChild(this._frame)
      const inside = this._frame.contentWindow
      const answer = (data) => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      const load = (source) =>
        new Promise((done, failed) => {
          const script = inside.document.createElement("script")
          script.src = new URL(source, document.baseURI).href
          script.onload = done
          script.onerror = failed
          inside.document.body.appendChild(script)
        })
      inside.postMessage = answer
      inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      load(url).then(() => {
        const waiting = this._waiting
        this._waiting = null
        waiting.forEach((data) => this._deliver(data))
      })
    }

    _deliver(data) {
      const inside = this._frame.contentWindow
      const event = new inside.MessageEvent("message", { data })
      inside.dispatchEvent(event)
    }

    postMessage(data) {
      if (this._waiting) this._waiting.push(data)
      else this._deliver(data)
    }

    terminate() {
      this._frame.remove()
    }
  }
}

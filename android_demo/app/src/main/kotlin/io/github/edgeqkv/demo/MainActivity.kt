package io.github.edgeqkv.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.Button

/** The three screens; all that they show lives in [DemoApplication], so that a rotation only draws it again. */
class MainActivity : Activity() {
    private lateinit var tabs: List<Pair<Button, Screen>>
    private var shown = 0

    private val app get() = application as DemoApplication

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.main)
        keepClearOfBars(part(R.id.root))
        tabs = listOf(
            part<Button>(R.id.tab_models) to ModelsScreen(this, part(R.id.models), app.models, ::writeWith),
            part<Button>(R.id.tab_write) to WriteScreen(this, part(R.id.write), app.write, app.models),
            part<Button>(R.id.tab_compare) to CompareScreen(this, part(R.id.compare), app.compare, app.models),
        )
        tabs.forEachIndexed { number, (button, _) -> button.setOnClickListener { show(number) } }
        show(state?.getInt(TAB) ?: 0)
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putInt(TAB, shown)
        tabs.forEach { it.second.save(state) }
    }

    override fun onRestoreInstanceState(state: Bundle) {
        super.onRestoreInstanceState(state)
        tabs.forEach { it.second.restore(state) }
    }

    override fun onStart() {
        super.onStart()
        app.write.shown()
        tabs.forEach { it.second.start() }
    }

    override fun onResume() {
        super.onResume()
        app.inFront = true
    }

    override fun onPause() {
        app.inFront = false
        super.onPause()
    }

    override fun onStop() {
        tabs.forEach { it.second.stop() }
        super.onStop()
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        super.onActivityResult(request, result, data)
        val uri = data?.data
        if (result != RESULT_OK || uri == null) return
        keepAccess(contentResolver, uri)
        when (request) {
            ModelsScreen.PICK_FOLDER -> app.models.import { PickedFolder(contentResolver, uri) }
            ModelsScreen.PICK_ZIP -> app.models.import { pickedZip(contentResolver, uri, cacheDir) }
        }
    }

    private fun writeWith(model: InstalledModel) {
        app.write.choose(model)
        show(WRITE)
    }

    private fun show(number: Int) {
        shown = number
        tabs.forEachIndexed { i, (button, screen) ->
            button.isSelected = i == number
            button.setTextColor(getColor(if (i == number) R.color.series_0 else R.color.quiet))
            screen.view.visibility = if (i == number) View.VISIBLE else View.GONE
        }
    }

    private companion object {
        const val TAB = "tab"
        const val WRITE = 1
    }
}
